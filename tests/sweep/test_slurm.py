"""Slurm: the jobs we submit and how we handle its answers. Shell scripts stand in for its commands."""

import os
import signal
from pathlib import Path

import pytest
from sweep_helpers import wait_until

pytest.importorskip("submitit", reason="no submitit: pip install 'llmdreamer[submitit]'")

from llmdreamer.sweep.launchers import slurm as slurm_launcher
from llmdreamer.sweep.launchers.base import LauncherLost, ProcessSpec
from llmdreamer.sweep.launchers.slurm import SubmititLauncher
from llmdreamer.sweep.run_source import RunTask
from llmdreamer.sweep.settings import SubmititSettings
from llmdreamer.sweep.worker import Slot, Worker, WorkerOptions
from llmdreamer.utils.errors import ConfigError

# Records each call, keeps the last batch file, then runs the script `answer`.
SBATCH = """#!/bin/sh
echo call >> {folder}/calls
cp "$1" {folder}/batch.sh
. {folder}/answer
"""
ACCEPTED = "echo Submitted batch job $(wc -l < {folder}/calls)"
TIMED_OUT = "Batch job submission failed: Socket timed out on send/recv operation"
REJECTED = "Batch job submission failed: Invalid partition name specified"


class FakeSlurm:
    """Slurm's commands as scripts in a folder on the PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        self._write_command("sbatch", SBATCH.format(folder=folder))
        self._write_command("squeue", "#!/bin/sh\necho PENDING\n")
        self._write_command("sacct", "#!/bin/sh\necho 'JobID|State|NodeList'\n")
        # srun's options precede the command.
        self._write_command("srun", '#!/bin/sh\nshift 5\nexec "$@"\n')
        self._write_command("scancel", f"#!/bin/sh\necho $* >> {folder}/cancelled\n")
        self.accept()

    def _write_command(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def accept(self) -> None:
        (self.folder / "answer").write_text(ACCEPTED.format(folder=self.folder))

    def accept_all_but(self, call: int) -> None:
        """Run the jobs of all calls but one, which times out."""
        script = f"""
job=$(wc -l < {self.folder}/calls)
if [ $job = {call} ]; then echo sbatch: error: {TIMED_OUT} >&2; exit 1; fi
cp "$1" {self.folder}/$job.sh
SLURM_JOB_ID=$job sh {self.folder}/$job.sh > /dev/null 2>&1 &
echo Submitted batch job $job
"""
        (self.folder / "answer").write_text(script)

    def reject(self, error: str) -> None:
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
    return FakeSlurm(tmp_path / "slurm")


@pytest.fixture
def make_launcher(slurm, tmp_path):
    """Return a function: `make_launcher(qos="low")` is a driver's launcher with these options."""
    launchers = []

    def make(**options) -> SubmititLauncher:
        settings = SubmititSettings(**options)
        launchers.append(SubmititLauncher(settings, tmp_path / "sweep", 15, stop_within=60))
        return launchers[-1]

    yield make
    for launcher in launchers:
        launcher.close()


@pytest.fixture
def process(tmp_path):
    return ProcessSpec(["run"], {}, tmp_path / "run")


@pytest.mark.parametrize(
    ("parameters", "lines"),
    [
        ({}, ["#SBATCH --no-requeue"]),
        ({"mail_user": "me"}, ["#SBATCH --mail-user=me", "#SBATCH --no-requeue"]),
        ({"requeue": True}, ["#SBATCH --requeue"]),
    ],
)
def test_slurm_job_is_not_requeued_unless_requested(
    slurm, make_launcher, process, parameters, lines
):
    make_launcher(additional_parameters=parameters).start(process).poll()
    options = ("#SBATCH --no-requeue", "#SBATCH --requeue", "#SBATCH --mail")
    assert [line for line in slurm.batch if line.startswith(options)] == lines


def test_stored_commands_are_readable_by_their_owner_only(slurm, make_launcher, tmp_path):
    secret = ProcessSpec(["run", "uri=http://me:s3cret@there"], {}, tmp_path / "run")
    make_launcher().start(secret).poll()
    stored = [path for path in tmp_path.rglob("*.pkl") if b"s3cret" in path.read_bytes()]
    assert stored and all(path.parent.stat().st_mode & 0o077 == 0 for path in stored)


@pytest.fixture
def fast_retries(monkeypatch):
    """Submit again after a tenth of a second."""
    monkeypatch.setattr(slurm_launcher, "FIRST_RETRY_SECONDS", 0.1)


def test_job_is_submitted_again_while_slurm_does_not_answer(
    slurm, make_launcher, process, fast_retries, tmp_path
):
    slurm.reject(TIMED_OUT)
    job = make_launcher().start(process)
    wait_until(lambda: job.poll() is None and slurm.calls == 3)
    slurm.accept()
    wait_until(lambda: job.poll() is None and slurm.calls == 4)
    # Only the accepted job has a folder. If Slurm did queue one of the others, that job runs nothing.
    assert len([*tmp_path.glob("sweep/.jobs/*/*/")]) == 1


def test_jobs_share_one_retry_delay_and_do_not_block(slurm, make_launcher, process):
    slurm.reject(TIMED_OUT)
    launcher = make_launcher()
    jobs = [launcher.start(process) for _ in range(4)]
    assert [job.poll() for job in jobs] * 2 == [None] * 8
    assert slurm.calls == 1


def test_launcher_is_lost_when_slurm_accepts_no_job_for_long(
    slurm, make_launcher, process, fast_retries, monkeypatch
):
    monkeypatch.setattr(slurm_launcher, "GIVE_UP_SECONDS", 0.3)
    slurm.reject(TIMED_OUT)
    job = make_launcher().start(process)
    with pytest.raises(LauncherLost, match="Socket timed out") as lost:
        wait_until(job.poll)
    assert lost.value.exit_code == 1


def test_invalid_job_options_are_a_config_error(slurm, make_launcher, process):
    slurm.reject(REJECTED)
    with pytest.raises(ConfigError, match="submitit_slurm: .*Invalid partition name specified"):
        make_launcher().start(process).poll()


def test_rejection_after_an_accepted_job_is_retried(slurm, make_launcher, process, fast_retries):
    launcher = make_launcher()
    assert launcher.start(process).poll() is None
    slurm.reject(REJECTED)
    job = launcher.start(process)
    wait_until(lambda: job.poll() is None and slurm.calls == 3)


def test_job_terminated_before_it_was_accepted_is_not_submitted_again(
    slurm, make_launcher, process, fast_retries
):
    slurm.reject(TIMED_OUT)
    job = make_launcher().start(process)
    assert job.poll() is None
    job.terminate()
    assert job.poll() == 128 + signal.SIGTERM
    assert slurm.calls == 1


def test_run_stopped_before_its_first_poll_is_not_submitted(slurm, make_launcher, tmp_path):
    options = WorkerOptions(
        ["run"], make_launcher(), [], "eval/return", False, retries=1, stop_within=1
    )
    worker = Worker(RunTask(tmp_path / "run", [], {}, "a run", 0), Slot(None, 1), options)
    worker.start()
    worker.stop(is_final=False)
    assert worker.has_exited()
    assert worker.outcome(interrupted=True) is None
    assert slurm.calls == 0


def test_sweep_survives_a_submission_that_times_out(slurm, sweeper):
    slurm.accept_all_but(call=2)
    code, out = sweeper("seed=0,1", "hydra/launcher=submitit_slurm", "hydra.sweeper.n_jobs=2")
    assert code == 0, out
    assert f"sbatch: error: {TIMED_OUT}" in out
    assert [row["state"] for row in sweeper.rows()] == ["finished"] * 2
    assert slurm.calls == 3
