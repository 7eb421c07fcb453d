"""Where the time of a gradient update goes, by backbone. Run by hand.

    python benchmarks/step.py [--backbones gru gpt2 ...] [--threads 1] [--repeat 5] [--peer-shapes]
        [override ...]

The table is printed, the figures also written as JSON (--json FILE). A share of the peak counts the
matrix products only, over the whole time of an update; the peak is a large product's, measured here
before each backbone.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from workload import PEER_SHAPES, PHASES, Update, gemm_peak

from llmdreamer.training.clock import peak_memory
from llmdreamer.training.machine import prepare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["gru", "gpt2", "smollm2", "mamba"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=5, help="updates timed, after two unseen")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peer-shapes", action="store_true", help="SheepRL's, as in peers.py")
    parser.add_argument("--json", type=Path)
    given, overrides = parser.parse_known_args()
    if given.peer_shapes:
        overrides = [*PEER_SHAPES, *overrides]
    prepare(given.threads)
    rows = [measure(name, overrides, given.device, given.repeat) for name in given.backbones]
    columns = [
        "backbone",
        "parameters",
        "ms an update",
        *PHASES,
        "GFLOP",
        "of the peak",
        "peak memory",
    ]
    table = Table(
        *columns, title=" ".join([f"{given.threads} threads, {given.device}", *overrides])
    )
    for row in rows:
        table.add_row(
            row["backbone"],
            f"{row['parameters'] / 1e6:.2f}M",
            f"{row['seconds'] * 1e3:.0f} [{row['least'] * 1e3:.0f}, {row['most'] * 1e3:.0f}]",
            *(f"{row['phases'][phase] * 1e3:.0f}" for phase in PHASES),
            f"{row['flops'] / 1e9:.1f}",
            f"{row['share']:.0%}",
            f"{row['memory'] / 2**20:.0f} MiB",
        )
    Console(width=140).print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1))


def measure(backbone: str, overrides: list[str], device: str, repeat: int) -> dict:
    """Medians over `repeat` updates."""
    peak = gemm_peak(device)
    update = Update([f"backbone={backbone}", *overrides], device)
    flops = update.flops()
    update()
    seconds, phases = [], []
    for _ in range(repeat):
        seconds.append(update())
        phases.append(update.phases)
    middle = statistics.median(seconds)
    return {
        "backbone": backbone,
        "parameters": update.parameters,
        "seconds": middle,
        "least": min(seconds),
        "most": max(seconds),
        "phases": {name: statistics.median(one[name] for one in phases) for name in PHASES},
        "flops": flops,
        "peak": peak,
        "share": flops / middle / peak,
        "memory": peak_memory(update.device),
    }


if __name__ == "__main__":
    main()
