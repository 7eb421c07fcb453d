"""The smallest run that learns, as a process of its own or in this one, and what it leaves behind."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from llmdreamer.tracking.spool import read
from llmdreamer.training.checkpoint import Checkpoints

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
TINY = (
    "backbone=gru",
    "threads=1",
    "algo.total_steps=64",
    "algo.learning_starts=16",
    "algo.per_rank_batch_size=4",
    "algo.per_rank_sequence_length=8",
    "algo.imag_starts=2",
    "algo.horizon=3",
    "algo.dense_units=16",
    "algo.world_model.stochastic_size=4",
    "algo.world_model.discrete_size=4",
    "algo.world_model.recurrent_model.dense_units=16",
    "algo.world_model.transition_model.hidden_size=16",
    "algo.world_model.representation_model.hidden_size=16",
    "eval.every=0",
    "eval.final_episodes=2",
    "tracking.log_every=5",
)
# A port at which nothing listens, and no patience: the record stays in the run's folder.
DEAD = "tracking.uri=http://127.0.0.1:9"


def start(cwd: Path, *overrides: str, **how) -> subprocess.Popen[str]:
    """The command, as typed in `cwd`, its two streams in one."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *TINY, DEAD, *overrides],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **how,
    )


def run(cwd: Path, *overrides: str, **how) -> tuple[int, str]:
    """Its exit code and all it said."""
    with start(cwd, *overrides, **how) as process:
        out, _ = process.communicate(timeout=120)
    return process.returncode, out


def saved(run_dir: Path) -> dict:
    return Checkpoints(run_dir / "checkpoints", 2).newest(torch.device("cpu"))["trainer"]


def rows(run_dir: Path) -> list:
    """Every row's values but the clock's and the machine's."""
    own = ("time/", "system/")
    return [
        (row.env_step, {k: v for k, v in row.metrics.items() if not k.startswith(own)})
        for row in read(run_dir / "metrics.jsonl")
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
