"""How much memory an update takes, by shape, and that a run takes no more the longer it is. Run by hand.

    python benchmarks/memory.py [--backbones gru gpt2] [--steps 20000] [--json FILE] [override ...]

Peaks are of whole processes, Python and torch included, one process each. A long run is one of few updates
(replay ratio 0.01), whose resident memory is read at every tenth of its steps.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
SHAPES = {
    "XS, as a run": ["model=XS"],
    "XS, B 32": ["model=XS", "algo.per_rank_batch_size=32"],
    "XS, T 64": ["model=XS", "algo.per_rank_sequence_length=64"],
    "XS, all starts": ["model=XS", "algo.imag_starts=null"],
    "XS, H 30": ["model=XS", "algo.horizon=30"],
    "S, B 4, T 16, 4 starts": [
        "model=S",
        "algo.per_rank_batch_size=4",
        "algo.per_rank_sequence_length=16",
        "algo.imag_starts=4",
    ],
}
PEAK = """
import sys
from workload import Update
from llmdreamer.training.clock import peak_memory
from llmdreamer.utils.device import prepare
prepare(1)
update = Update(sys.argv[1:])
before = peak_memory(update.device)
update(), update()
print(before, peak_memory(update.device))
"""
LONG = """
import sys
from pathlib import Path
import psutil
from workload import compose
from llmdreamer.utils.device import prepare
from llmdreamer.training.trainer import Trainer
prepare(1)
steps = int(sys.argv[2])
trainer = Trainer(compose([*sys.argv[3:], f"algo.total_steps={steps}"]), Path(sys.argv[1]))
for step in range(1, steps + 1):
    trainer.collect_step()
    list(trainer.train_updates())
    if step % (steps // 10) == 0:
        print(psutil.Process().memory_info().rss)
trainer.close()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["gru", "gpt2"])
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="some of them only")
    parser.add_argument("--steps", type=int, default=20_000, help="of the long run; 0: none")
    parser.add_argument("--json", type=Path)
    given, overrides = parser.parse_known_args()
    found: dict = {"peaks": [], "long": []}
    table = Table("backbone", "shape", "built, MiB", "peak of an update, MiB")
    for backbone in given.backbones:
        for shape in given.shapes:
            asked = [f"backbone={backbone}", *SHAPES[shape], *overrides]
            before, peak = (float(word) for word in told(PEAK, asked).split())
            found["peaks"].append({"backbone": backbone, "shape": shape, "bytes": peak})
            table.add_row(backbone, shape, f"{before / 2**20:.0f}", f"{peak / 2**20:.0f}")
    console = Console(width=100)
    console.print(table)
    if given.steps > 0:
        table = Table("backbone", "MiB at each tenth of the steps", "growth, second half")
        for backbone in given.backbones:
            held = grown(backbone, given.steps, overrides)
            found["long"].append({"backbone": backbone, "steps": given.steps, "bytes": held})
            growth = (held[-1] - held[4]) / 2**20
            table.add_row(
                backbone, " ".join(f"{one / 2**20:.0f}" for one in held), f"{growth:.1f} MiB"
            )
        console.print(table)
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1))


def grown(backbone: str, steps: int, overrides: list[str]) -> list[float]:
    """Resident bytes at every tenth of a run."""
    with tempfile.TemporaryDirectory() as folder:
        asked = [f"backbone={backbone}", "replay_ratio=0.01", *overrides]
        return [float(word) for word in told(LONG, [folder, str(steps), *asked]).split()]


def told(program: str, arguments: list[str]) -> str:
    """What a process of its own prints."""
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    main()
