"""How the time of an update grows with what it is asked to do. Run by hand.

    python benchmarks/growth.py [--backbones gru gpt2 mamba] [--threads 1] [override ...]

Each of B, T, the imagined starts and H is doubled three times, the others as in the first row. The
exponent is the slope of log time over log size: 1 is linear, less is a fixed cost that is spread. The last
column is how far the farthest time lies from a straight line through all four.
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
FIXED = ["algo.world_model.hf_model.seq_len=16"]  # the context is not what grows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["gru", "gpt2", "mamba"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=5, help="updates timed, after two unseen")
    parser.add_argument("--json", type=Path)
    given, overrides = parser.parse_known_args()
    prepare(given.threads)
    table = Table(
        "backbone",
        "what grows",
        *(f"x{factor}, ms" for factor in FACTORS),
        "exponent",
        "off a line",
    )
    found = []
    for backbone in given.backbones:
        for what, size in BASE.items():
            seconds = [
                measure(backbone, BASE | {what: size * factor}, overrides, given.repeat)
                for factor in FACTORS
            ]
            exponent = float(np.polyfit(np.log(FACTORS), np.log(seconds), 1)[0])
            line = np.polyval(np.polyfit(FACTORS, seconds, 1), FACTORS)
            off = float(np.abs(line / np.array(seconds) - 1).max())
            found.append(
                {
                    "backbone": backbone,
                    "what": what,
                    "seconds": seconds,
                    "exponent": exponent,
                    "off_a_line": off,
                }
            )
            times = [f"{one * 1e3:.0f}" for one in seconds]
            table.add_row(backbone, what, *times, f"{exponent:.2f}", f"{100 * off:.0f}%")
    Console(width=100).print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


def measure(backbone: str, sizes: dict[str, int], overrides: list[str], repeat: int) -> float:
    """Median seconds of an update."""
    asked = [f"{KEYS[name]}={size}" for name, size in sizes.items()]
    update = Update([f"backbone={backbone}", *FIXED, *asked, *overrides])
    update()
    update()
    return statistics.median(update() for _ in range(repeat))


if __name__ == "__main__":
    main()
