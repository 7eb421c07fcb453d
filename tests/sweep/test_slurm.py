"""What we ask of Slurm and make of its answers; Slurm is shell scripts that say what it says."""

import os
from pathlib import Path

import pytest

pytest.importorskip("submitit", reason="no submitit: pip install 'llmdreamer[submitit]'")

from llmdreamer.sweep.engine import Order
from llmdreamer.sweep.settings import Submitit
from llmdreamer.sweep.slurm import SubmititEngine

# Counts its calls, keeps the batch file of the last one, and answers it with `answer`.
SBATCH = """#!/bin/sh
echo call >> {folder}/calls
cp "$1" {folder}/batch.sh
. {folder}/answer
"""
ACCEPTS = "echo Submitted batch job $(wc -l < {folder}/calls)"


class Slurm:
    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self._program("sbatch", SBATCH.format(folder=folder))
        self._program("squeue", "#!/bin/sh\necho PENDING\n")
        self._program("sacct", "#!/bin/sh\necho 'JobID|State|NodeList'\n")
        self._program("srun", "#!/bin/sh\n")
        self._program("scancel", f"#!/bin/sh\necho $* >> {folder}/cancelled\n")
        self.answers(ACCEPTS.format(folder=folder))

    def _program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def answers(self, shell: str) -> None:
        (self.folder / "answer").write_text(shell)

    @property
    def calls(self) -> int:
        path = self.folder / "calls"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def batch(self) -> list[str]:
        return (self.folder / "batch.sh").read_text().splitlines()


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "slurm"), prepend=os.pathsep)
    return Slurm(tmp_path / "slurm")


@pytest.fixture
def engine(slurm, tmp_path):
    """`engine(qos="low")` is a driver's engine with these options."""
    engines = []

    def made(**options) -> SubmititEngine:
        engines.append(SubmititEngine(Submitit(**options), tmp_path / "sweep", heartbeat=15))
        return engines[-1]

    yield made
    for one in engines:
        one.close()


@pytest.fixture
def order(tmp_path):
    return Order(["run"], {}, tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        ({}, ["#SBATCH --no-requeue"]),
        ({"mail_user": "me"}, ["#SBATCH --mail-user=me", "#SBATCH --no-requeue"]),
        ({"requeue": True}, ["#SBATCH --requeue"]),
    ],
)
def test_slurm_is_not_to_begin_a_job_again_unless_it_is_told_to(slurm, engine, order, given, lines):
    engine(additional_parameters=given).start(order)
    assert [line for line in slurm.batch if "requeue" in line or "mail" in line] == lines
