"""Measure the memory of an update by shape, and the memory of a long run over time. Run by hand.

    python benchmarks/memory.py [--backbones gru gpt2] [--steps 20000] [--json FILE] [override ...]

A peak is that of a whole process, with Python and torch; each is measured in a new process. The long run
makes few updates (replay ratio 0.01); its resident memory is read at every tenth of its steps.
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
    "XS, defaults": ["model=XS"],
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
PEAK_SCRIPT = """
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
LONG_RUN_SCRIPT = """
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
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), help="shapes to measure")
    parser.add_argument(
        "--steps", type=int, default=20_000, help="steps of the long run; 0: no long run"
    )
    parser.add_argument("--json", type=Path)
    args, overrides = parser.parse_known_args()
    results: dict = {"peaks": [], "long": []}
    table = Table("backbone", "shape", "before updates, MiB", "peak of an update, MiB")
    for backbone in args.backbones:
        for shape in args.shapes:
            command_line = [f"backbone={backbone}", *SHAPES[shape], *overrides]
            before, peak = (float(word) for word in run_python(PEAK_SCRIPT, command_line).split())
            results["peaks"].append({"backbone": backbone, "shape": shape, "bytes": peak})
            table.add_row(backbone, shape, f"{before / 2**20:.0f}", f"{peak / 2**20:.0f}")
    console = Console(width=100)
    console.print(table)
    if args.steps > 0:
        table = Table("backbone", "MiB at each tenth of the steps", "growth, second half")
        for backbone in args.backbones:
            sizes = long_run(backbone, args.steps, overrides)
            results["long"].append({"backbone": backbone, "steps": args.steps, "bytes": sizes})
            growth = (sizes[-1] - sizes[4]) / 2**20
            table.add_row(
                backbone, " ".join(f"{size / 2**20:.0f}" for size in sizes), f"{growth:.1f} MiB"
            )
        console.print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1))


def long_run(backbone: str, steps: int, overrides: list[str]) -> list[float]:
    """Return the resident bytes at every tenth of a run."""
    with tempfile.TemporaryDirectory() as folder:
        command_line = [f"backbone={backbone}", "replay_ratio=0.01", *overrides]
        output = run_python(LONG_RUN_SCRIPT, [folder, str(steps), *command_line])
        return [float(word) for word in output.split()]


def run_python(script: str, arguments: list[str]) -> str:
    """Run a script in a new process and return its output."""
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=HERE, check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout


if __name__ == "__main__":
    main()
