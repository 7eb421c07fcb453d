"""Remote jobs: the messages between driver and job, and grids that run through submitit."""

import os
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from sweep_helpers import Sweeper, checkpoints, is_gone, read_starts, wait_until

from llmdreamer.sweep.launchers import mailbox, slurm
from llmdreamer.sweep.launchers.base import ProcessSpec
from llmdreamer.sweep.launchers.mailbox import JobSpec, RemoteJob, execute
from llmdreamer.sweep.launchers.slurm import is_queued
from llmdreamer.sweep.run_source import RunTask
from llmdreamer.sweep.worker import Slot, Worker, WorkerOptions
from llmdreamer.tracking.record import RunFiles, RunRecord, save

# Writes its process ID and the variable SOURCE; exits with 7 on SIGTERM, which "ignore" ignores.
PROGRAM = """
import os, pathlib, signal, sys, time
handler = signal.SIG_IGN if sys.argv[2] == "ignore" else lambda *_: sys.exit(7)
signal.signal(signal.SIGTERM, handler)
pathlib.Path(sys.argv[1], "pid").write_text(f"{os.getpid()} {os.environ.get('SOURCE')}")
while sys.argv[2] != "short":
    time.sleep(0.01)
"""


class ThreadScheduler:
    """A scheduler with one job, which it runs in a thread once `begin` is called."""

    def __init__(
        self,
        folder: Path,
        behavior: str = "",
        heartbeat_seconds: float = 15.0,
        stop_within: float = 60.0,
    ):
        self.folder, self.is_cancelled = folder, False
        job_dir, driver_heartbeat = folder / "job", folder / "driver_heartbeat"
        job_dir.mkdir()
        driver_heartbeat.write_text(str(time.time()))
        command = [sys.executable, "-c", PROGRAM, str(folder), behavior]
        process = ProcessSpec(command, {"SOURCE": "process"}, folder)
        self.spec = JobSpec(
            process, Path.cwd(), job_dir, driver_heartbeat, heartbeat_seconds, stop_within
        )
        self.thread = threading.Thread(target=execute, args=(self.spec, {"SOURCE": "driver"}))
        reason = "no module named llmdreamer"
        output = folder / "output.log"
        self.job = RemoteJob(
            job_dir, self.is_over, self.cancel, lambda: reason, output, heartbeat_seconds
        )

    def is_over(self) -> bool:
        return self.thread.ident is not None and not self.thread.is_alive()

    def cancel(self):
        self.is_cancelled = True

    def begin(self) -> list[str]:
        """Start the job; return what its process wrote."""
        self.thread.start()
        wait_until(lambda: (self.folder / "pid").exists() and (self.folder / "pid").read_text())
        return (self.folder / "pid").read_text().split()

    def wait(self) -> int:
        """Wait for the job's end; return its exit code."""
        wait_until(lambda: self.job.poll() is not None, timeout_seconds=30)
        self.thread.join()
        return self.job.poll()


@pytest.fixture
def scheduler(tmp_path):
    return lambda *args, **kwargs: ThreadScheduler(tmp_path, *args, **kwargs)


def test_remote_job_that_ends_reports_its_exit_code(scheduler):
    remote = scheduler("short")
    assert remote.job.poll() is None
    assert remote.begin()[1] == "process"
    assert remote.wait() == 0
    assert not remote.spec.job_dir.exists()


def test_remote_job_terminated_sends_sigterm_to_its_process(scheduler):
    remote = scheduler()
    remote.begin()
    remote.job.terminate()
    assert (remote.wait(), remote.is_cancelled) == (7, False)


def test_remote_job_that_ignores_sigterm_is_killed(scheduler):
    remote = scheduler("ignore")
    remote.begin()
    remote.job.terminate()
    remote.job.kill()
    assert (remote.wait(), remote.is_cancelled) == (-signal.SIGKILL, False)


def test_queued_job_terminated_is_cancelled(scheduler, monkeypatch):
    monkeypatch.setattr(mailbox, "FILE_DELAY_SECONDS", 0.3)
    remote = scheduler()
    remote.job.terminate()
    assert remote.is_cancelled
    wait_until(lambda: remote.job.poll() is not None, timeout_seconds=30)
    assert remote.job.poll() == -signal.SIGKILL


def test_cancelled_job_that_starts_anyway_runs_nothing(scheduler, tmp_path):
    remote = scheduler()
    remote.job.terminate()
    remote.thread.start()
    assert remote.wait() == 128 + signal.SIGTERM
    assert not (tmp_path / "pid").exists()


def test_lost_job_is_killed_and_logs_the_schedulers_reason(scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(mailbox, "FILE_DELAY_SECONDS", 0.3)
    job = scheduler().job
    job.is_over = lambda: True
    wait_until(lambda: job.poll() is not None, timeout_seconds=30)
    assert job.poll() == -signal.SIGKILL
    assert (tmp_path / "output.log").read_text() == "no module named llmdreamer\n"


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [(0, None, "failed"), (0, "KILLED", "failed"), (1, "FINISHED", "finished"), (-9, "FINISHED", "finished")],
)  # fmt: skip
def test_record_of_the_run_counts_and_not_the_exit_code_of_its_job(tmp_path, code, status, kind):
    record = RunRecord("", "", "", {}, {}, 0.0)

    def start(process: ProcessSpec) -> SimpleNamespace:
        record.status = status
        save(record, RunFiles(tmp_path).run_record)
        return SimpleNamespace(poll=lambda: code)

    launcher = SimpleNamespace(start=start, close=lambda: None)
    options = WorkerOptions(["run"], launcher, [], "eval/return", False, retries=0, stop_within=1)
    worker = Worker(RunTask(tmp_path, [], {}, "a run", 0), Slot(None, 1), options)
    worker.start()
    assert worker.has_exited()
    outcome = worker.outcome(interrupted=False)
    assert outcome.kind == kind
    assert (outcome.exit_code != 0) == (kind == "failed")


def test_run_whose_jobs_are_all_lost_fails_with_the_last_reason(tmp_path):
    class LostJob:
        def poll(self) -> int:
            (tmp_path / "output.log").write_text("first\nno module named llmdreamer\n")
            return -signal.SIGKILL

    launcher = SimpleNamespace(start=lambda process: LostJob(), close=lambda: None)
    options = WorkerOptions(["run"], launcher, [], "eval/return", False, retries=1, stop_within=1)
    worker = Worker(RunTask(tmp_path, [], {}, "a run", 0), Slot(None, 1), options)
    worker.start()
    assert worker.has_exited()
    assert worker.outcome(interrupted=False) is None  # retry
    worker.start()
    assert worker.has_exited()
    failed = worker.outcome(interrupted=False)
    assert failed.kind == "failed"
    assert "signal 9" in failed.cause and "no module named llmdreamer" in failed.cause


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("Job 7 failed\n  File 'a.py'\nOSError: no space\n\n----\n", "OSError: no space"),
        ("", ""),
    ],
)
def test_last_error_line_skips_blank_and_dashed_lines(text, line):
    assert mailbox.last_error_line(RuntimeError(text)) == line
    assert mailbox.last_error_line(None) == ""


def test_silent_job_is_lost_though_its_scheduler_says_nothing(scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(mailbox, "FILE_DELAY_SECONDS", 0.3)
    remote = scheduler(heartbeat_seconds=0.125)
    remote.job.is_over = lambda: False
    for beat in range(6):
        (tmp_path / "job" / "heartbeat").write_text(str(beat))
        assert remote.job.poll() is None
        time.sleep(0.25)
    wait_until(lambda: remote.job.poll() is not None, timeout_seconds=30)
    assert (remote.job.poll(), remote.is_cancelled) == (-signal.SIGKILL, True)


def test_process_of_a_silent_driver_is_terminated(scheduler):
    remote = scheduler(heartbeat_seconds=0.125)
    start_time = time.monotonic()
    remote.begin()
    for number in range(5):
        (remote.folder / "driver_heartbeat").write_text(f"{number + 2}")
        time.sleep(0.3)
        assert remote.job.poll() is None
    assert remote.wait() == 7
    assert time.monotonic() - start_time > 1.5


def test_deaf_process_of_a_silent_driver_is_killed_after_stop_within(scheduler):
    remote = scheduler("ignore", heartbeat_seconds=0.125, stop_within=0.5)
    remote.begin()
    assert remote.wait() == -signal.SIGKILL


def test_job_started_again_runs_nothing(scheduler, tmp_path, capsys):
    remote = scheduler()
    pid, _ = remote.begin()
    execute(remote.spec)
    assert capsys.readouterr().out.startswith("job not run: ")
    assert (tmp_path / "pid").read_text().split()[0] == pid
    remote.job.terminate()
    assert remote.wait() == 7
    execute(remote.spec)
    assert capsys.readouterr().out.startswith("job not run: ")
    assert (tmp_path / "pid").read_text().split()[0] == pid
    assert not remote.spec.job_dir.exists()


def test_job_started_after_its_driver_died_runs_nothing(scheduler, tmp_path, capsys):
    remote = scheduler(heartbeat_seconds=0.125)
    remote.spec.driver_heartbeat.write_text(str(time.time() - 60))
    execute(remote.spec)
    assert capsys.readouterr().out.startswith("job not run: ")
    assert not (tmp_path / "pid").exists()


def test_job_runs_when_the_drivers_clock_is_an_hour_behind(scheduler):
    remote = scheduler("short", heartbeat_seconds=5.0)

    def beats() -> bool:
        remote.spec.driver_heartbeat.write_text(str(time.time() - 3600))
        return (remote.folder / "pid").exists()

    beats()
    remote.thread.start()
    wait_until(beats)
    assert remote.wait() == 0


def test_process_is_terminated_when_the_driver_removes_its_job_dir(scheduler):
    remote = scheduler()
    pid, _ = remote.begin()
    shutil.rmtree(remote.spec.job_dir)
    remote.thread.join(timeout=60)
    assert is_gone(pid)
    assert not remote.spec.job_dir.exists()


# --- squeue, and grids through submitit's local executor ---

TWO_SEEDS = ["seed=0,1", "hydra.sweeper.n_jobs=2", "hydra.sweeper.study_name=g"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("echo PENDING", True),
        ("true", False),
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", False),
        ("echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1", True),
        ("exec sleep 100", True),
    ],
)
def test_is_queued_is_false_only_if_squeue_says_so(tmp_path, monkeypatch, answer, expected):
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\n{answer}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    timeout_seconds = 10.0 if "sleep" not in answer else 0.3
    monkeypatch.setattr(slurm, "QUEUE_TIMEOUT_SECONDS", timeout_seconds)
    assert is_queued("7") is expected


@pytest.fixture
def submitit():
    return pytest.importorskip("submitit", reason="no submitit: pip install 'llmdreamer[submitit]'")


def test_grid_through_submitit_gives_the_local_results(submitit, sweeper: Sweeper):
    launcher = ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=3"]
    code, out = sweeper(*TWO_SEEDS, *launcher)
    assert code == 0, out
    assert [row["state"] for row in sweeper.rows()] == ["finished"] * 2
    assert [row["eval/return"] for row in sweeper.rows()] == ["10.0", "20.0"]
    assert [read_starts(cell)[0][2] for cell in sweeper.cells] == ["3", "3"]
    assert len(list(sweeper.folder.glob("outputs/sweeps/g/.jobs/submitit/*_result.pkl"))) == 2


def test_preempted_or_stopped_job_resumes_from_its_checkpoint(submitit, sweeper: Sweeper):
    command = ["seed=0", "hydra.sweeper.study_name=g", "hydra/launcher=submitit_local"]
    slow = {"FAKE_RUN_STEP_SECONDS": "0.25", "FAKE_RUN_STEPS": "100"}

    def started_pid(count: int) -> str:
        """Return the ID of the count-th process, once it has written a checkpoint."""
        wait_until(lambda: sweeper.cells and len(read_starts(sweeper.cells[0])) == count)
        (cell,) = sweeper.cells
        *_, (first_step, pid, *_) = read_starts(cell)
        wait_until(lambda: len(checkpoints(cell)) > int(first_step))
        return pid

    driver = sweeper.start(*command, **slow)
    os.kill(int(started_pid(1)), signal.SIGTERM)  # Slurm's preemption: a checkpoint, exit code 143
    pid = started_pid(2)
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130, out
    assert is_gone(pid)
    code, out = sweeper(*command, FAKE_RUN_STEPS="100")
    assert code == 0, out
    (cell,) = sweeper.cells
    first_steps = [int(start[0]) for start in read_starts(cell)]
    assert len(first_steps) == 3
    assert first_steps == sorted({*first_steps})  # each process resumed the one before
    assert sweeper.rows()[0]["eval/return"] == "100.0"
