"""Measure how the time of an update grows with its sizes. Run by hand.

    python benchmarks/growth.py [--backbones gru gpt2 mamba] [--threads 1] [override ...]

B, T, the number of imagined starts and H are each doubled three times while the others keep their base
value. The exponent is the slope of log time over log size: 1 is linear, less than 1 means a fixed cost.
The last column is the largest relative distance of a time from a straight line through all four.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from workload import Update

from llmdreamer.utils.device import prepare

BASE = {"batch": 4, "length": 32, "starts": 4, "horizon": 5}
FACTORS = (1, 2, 4, 8)
KEYS = {
    "batch": "algo.per_rank_batch_size",
    "length": "algo.per_rank_sequence_length",
    "starts": "algo.imag_starts",
    "horizon": "algo.horizon",
}
FIXED = ["algo.world_model.hf_model.seq_len=16"]  # the context does not grow


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["gru", "gpt2", "mamba"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5, help="timed updates, after two of warm-up")
    parser.add_argument("--json", type=Path)
    args, overrides = parser.parse_known_args()
    prepare(args.threads)
    table = Table(
        "backbone",
        "size",
        *(f"x{factor}, ms" for factor in FACTORS),
        "exponent",
        "off the line",
    )
    results = []
    for backbone in args.backbones:
        for name, size in BASE.items():
            seconds = [
                measure(backbone, BASE | {name: size * factor}, overrides, args.repeat)
                for factor in FACTORS
            ]
            exponent = float(np.polyfit(np.log(FACTORS), np.log(seconds), 1)[0])
            line = np.polyval(np.polyfit(FACTORS, seconds, 1), FACTORS)
            deviation = float(np.abs(line / np.array(seconds) - 1).max())
            results.append(
                {
                    "backbone": backbone,
                    "size": name,
                    "seconds": seconds,
                    "exponent": exponent,
                    "off_the_line": deviation,
                }
            )
            times = [f"{value * 1e3:.0f}" for value in seconds]
            table.add_row(backbone, name, *times, f"{exponent:.2f}", f"{100 * deviation:.0f}%")
    Console(width=100).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))


def measure(backbone: str, sizes: dict[str, int], overrides: list[str], repeat: int) -> float:
    """Return the median seconds of an update."""
    sized = [f"{KEYS[name]}={size}" for name, size in sizes.items()]
    update = Update([f"backbone={backbone}", *FIXED, *sized, *overrides])
    update()
    update()
    return statistics.median(update() for _ in range(repeat))


if __name__ == "__main__":
    main()
