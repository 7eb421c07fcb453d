"""What we ask of Slurm and make of its answers; Slurm is shell scripts that say what it says."""

import os
import signal
from pathlib import Path

import pytest
from sweep_helpers import wait_until

pytest.importorskip("submitit", reason="no submitit: pip install 'llmdreamer[submitit]'")

from llmdreamer.sweep.launchers import slurm as slurm_module
from llmdreamer.sweep.launchers.base import EngineLost, Order
from llmdreamer.sweep.launchers.slurm import SubmititEngine
from llmdreamer.sweep.run_source import RunTask
from llmdreamer.sweep.settings import SubmititSettings
from llmdreamer.sweep.worker import Slot, Worker, WorkerOptions
from llmdreamer.utils.errors import ConfigError

# Counts its calls, keeps the batch file of the last one, and answers it with `answer`.
SBATCH = """#!/bin/sh
echo call >> {folder}/calls
cp "$1" {folder}/batch.sh
. {folder}/answer
"""
ACCEPTS = "echo Submitted batch job $(wc -l < {folder}/calls)"
SILENT = "Batch job submission failed: Socket timed out on send/recv operation"
REFUSED = "Batch job submission failed: Invalid partition name specified"


class Slurm:
    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self._program("sbatch", SBATCH.format(folder=folder))
        self._program("squeue", "#!/bin/sh\necho PENDING\n")
        self._program("sacct", "#!/bin/sh\necho 'JobID|State|NodeList'\n")
        self._program(
            "srun", '#!/bin/sh\nshift 5\nexec "$@"\n'
        )  # its options stand before the command
        self._program("scancel", f"#!/bin/sh\necho $* >> {folder}/cancelled\n")
        self.takes()

    def _program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def takes(self) -> None:
        (self.folder / "answer").write_text(ACCEPTS.format(folder=self.folder))

    def silent_at(self, call: int) -> None:
        """Run the jobs of all calls but one, which gets no answer."""
        shell = f"""
job=$(wc -l < {self.folder}/calls)
if [ $job = {call} ]; then echo sbatch: error: {SILENT} >&2; exit 1; fi
cp "$1" {self.folder}/$job.sh
SLURM_JOB_ID=$job sh {self.folder}/$job.sh > /dev/null 2>&1 &
echo Submitted batch job $job
"""
        (self.folder / "answer").write_text(shell)

    def says(self, error: str) -> None:
        (self.folder / "answer").write_text(f"echo sbatch: error: '{error}' >&2; exit 1")

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
        engines.append(
            SubmititEngine(SubmititSettings(**options), tmp_path / "sweep", heartbeat=15)
        )
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
    engine(additional_parameters=given).start(order).poll()
    assert [line for line in slurm.batch if "requeue" in line or "mail" in line] == lines


def test_nobody_else_reads_what_was_typed(slurm, engine, tmp_path):
    engine().start(Order(["run", "uri=http://me:s3cret@there"], {}, tmp_path / "run")).poll()
    kept = [path for path in tmp_path.rglob("*.pkl") if b"s3cret" in path.read_bytes()]
    assert kept and all(path.parent.stat().st_mode & 0o077 == 0 for path in kept)


@pytest.fixture
def hasty(monkeypatch):
    """Slurm is asked again after a tenth of a second."""
    monkeypatch.setattr(slurm_module, "AGAIN", 0.1)


def test_where_slurm_does_not_answer_a_job_waits_and_is_asked_for_again(
    slurm, engine, order, hasty, tmp_path
):
    slurm.says(SILENT)
    job = engine().start(order)
    wait_until(lambda: job.poll() is None and slurm.calls == 3)
    slurm.takes()
    wait_until(lambda: job.poll() is None and slurm.calls == 4)
    # Only what was taken has a box: should Slurm have heard of the others after all, they run nothing.
    assert len([*tmp_path.glob("sweep/.jobs/*/*/")]) == 1


def test_all_jobs_wait_for_slurm_together_and_nobody_for_them(slurm, engine, order):
    slurm.says(SILENT)
    placed = engine()
    jobs = [placed.start(order) for _ in range(4)]
    assert [job.poll() for job in jobs] * 2 == [None] * 8
    assert slurm.calls == 1


def test_a_slurm_that_takes_no_job_for_minutes_is_given_up_in_one_line(
    slurm, engine, order, hasty, monkeypatch
):
    monkeypatch.setattr(slurm_module, "PATIENCE", 0.3)
    slurm.says(SILENT)
    job = engine().start(order)
    with pytest.raises(EngineLost, match="Socket timed out .*; the same command goes on") as lost:
        wait_until(job.poll)
    assert lost.value.exit_code == 1


def test_what_slurm_will_not_have_is_refused_at_once(slurm, engine, order):
    slurm.says(REFUSED)
    with pytest.raises(ConfigError, match="submitit_slurm: .*Invalid partition name specified"):
        engine().start(order).poll()


def test_what_slurm_has_had_before_it_will_have_again(slurm, engine, order, hasty):
    placed = engine()
    assert placed.start(order).poll() is None
    slurm.says(REFUSED)
    job = placed.start(order)
    wait_until(lambda: job.poll() is None and slurm.calls == 3)


def test_a_job_told_to_leave_before_slurm_took_it_is_not_asked_for_again(
    slurm, engine, order, hasty
):
    slurm.says(SILENT)
    job = engine().start(order)
    assert job.poll() is None
    job.terminate()
    assert job.poll() == 128 + signal.SIGTERM
    assert slurm.calls == 1


def test_a_run_that_is_stopped_before_slurm_was_asked_for_it_is_not_asked_for(
    slurm, engine, tmp_path
):
    program = WorkerOptions(["run"], engine(), [], "eval/return", False, retries=1, stop_within=1)
    worker = Worker(RunTask(tmp_path / "run", [], {}, "a run", 0), Slot(None, 1), program)
    worker.start()
    worker.stop(wanted=False)
    assert worker.has_exited()
    assert worker.outcome(interrupted=True) is None
    assert slurm.calls == 0


def test_a_sweep_outlives_a_slurm_that_once_does_not_answer(slurm, sweeper):
    slurm.silent_at(call=2)
    place = ["hydra/launcher=submitit_slurm", "hydra.sweeper.n_jobs=2"]
    code, out = sweeper("seed=0,1", *place)
    assert code == 0, out
    assert f"Slurm took no job (sbatch: error: {SILENT}): trying again" in out
    assert [row["state"] for row in sweeper.rows()] == ["finished"] * 2
    assert slurm.calls == 3
