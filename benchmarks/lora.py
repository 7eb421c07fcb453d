"""Measure what LoRA saves in an update, and what it costs in imagination. Run by hand.

    python benchmarks/lora.py [--backbone gpt2] [--threads 2] [--rounds 5] [--json FILE] [override ...]

Size S, B 4, T 16, 4 starts per sequence. Updates with LoRA and with all weights trained alternate. The
ratios are those of the medians. In imagination the adapters are merged into the weights, and there are no
gradients that LoRA could save; `learning` is the rest of the update.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from workload import Update, spread

from llmdreamer.utils.device import prepare

SHAPES = [
    "model=S",
    "algo.per_rank_batch_size=4",
    "algo.per_rank_sequence_length=16",
    "algo.imag_starts=4",
]
LIMITS = {"update": None, "learning": 0.6, "imagination": 1.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="gpt2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one of warm-up")
    parser.add_argument("--json", type=Path)
    args, overrides = parser.parse_known_args()
    prepare(args.threads)
    shared = [*SHAPES, f"backbone={args.backbone}", *overrides]
    sides = {"full": Update([*shared, "peft=false"]), "lora": Update([*shared, "peft=true"])}
    times: dict[str, dict[str, list[float]]] = {
        side: {phase: [] for phase in LIMITS} for side in sides
    }
    for round_number in range(1 + args.rounds):
        for side, update in sides.items():
            seconds = update()
            if round_number > 0:
                imagination = update.phases["imagination"]
                times[side]["update"].append(seconds)
                times[side]["learning"].append(seconds - imagination)
                times[side]["imagination"].append(imagination)
    table = Table(
        *["phase", "full, s", "LoRA, s", "LoRA / full", "limit"],
        title=" ".join(shared),
    )
    for phase, limit in LIMITS.items():
        full, lora = times["full"][phase], times["lora"][phase]
        ratio = statistics.median(lora) / statistics.median(full)
        table.add_row(phase, spread(full), spread(lora), f"{ratio:.2f}", str(limit or ""))
    Console(width=120).print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(times, indent=1))


if __name__ == "__main__":
    main()
