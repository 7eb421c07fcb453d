"""What adapters save in an update, and that they cost a dream nothing. Run by hand.

    python benchmarks/lora.py [--backbone gpt2] [--threads 2] [--rounds 5] [--json FILE] [override ...]

At size S, B 4, T 16, 4 starts a sequence: updates with LoRA and with all weights trained, in turns. The
ratios are of the medians; a dream is the phase of imagination, where adapters are merged into the weights,
and learning the rest of the update: a dream has no gradient that adapters could save.
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
BARS = {"update": None, "learning": 0.6, "imagination": 1.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbone", default="gpt2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="after one that is not counted")
    parser.add_argument("--json", type=Path)
    given, overrides = parser.parse_known_args()
    prepare(given.threads)
    asked = [*SHAPES, f"backbone={given.backbone}", *overrides]
    sides = {"full": Update([*asked, "peft=false"]), "lora": Update([*asked, "peft=true"])}
    found: dict[str, dict[str, list[float]]] = {side: {what: [] for what in BARS} for side in sides}
    for taken in range(1 + given.rounds):
        for side, update in sides.items():
            seconds = update()
            if taken > 0:
                dream = update.phases["imagination"]
                found[side]["update"].append(seconds)
                found[side]["learning"].append(seconds - dream)
                found[side]["imagination"].append(dream)
    table = Table(
        *["what", "full, s", "LoRA, s", "LoRA / full", "at most"],
        title=" ".join(asked),
    )
    for what, bar in BARS.items():
        full, lora = found["full"][what], found["lora"][what]
        ratio = statistics.median(lora) / statistics.median(full)
        table.add_row(what, spread(full), spread(lora), f"{ratio:.2f}", str(bar or ""))
    Console(width=120).print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
