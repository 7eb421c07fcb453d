"""Processes at other places: what driver and place say to each other, then with submitit."""

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

from llmdreamer.sweep.launchers import mailbox as remote
from llmdreamer.sweep.launchers import slurm
from llmdreamer.sweep.launchers.base import Order
from llmdreamer.sweep.launchers.mailbox import Errand, Placed, execute
from llmdreamer.sweep.launchers.slurm import is_queued
from llmdreamer.sweep.run_source import RunTask
from llmdreamer.sweep.worker import Slot, Worker, WorkerOptions

# Says that it is there, and leaves with 7 on SIGTERM, or, told so, not at all.
PROGRAM = """
import os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[2] == "deaf" else lambda *_: sys.exit(7))
pathlib.Path(sys.argv[1], "pid").write_text(f"{os.getpid()} {os.environ.get('KNOWN')}")
while sys.argv[2] != "short":
    time.sleep(0.01)
"""


class Place:
    """A scheduler that starts a thread for a job when it is told to."""

    def __init__(self, folder: Path, kind: str = "", heartbeat: float = 15.0):
        self.folder, self.cancelled = folder, False
        box, pulse = folder / "box", folder / "pulse"
        box.mkdir()
        pulse.write_text(str(time.time()))
        order = Order([sys.executable, "-c", PROGRAM, str(folder), kind], {"KNOWN": "a"}, folder)
        self.errand = Errand(order, Path.cwd(), box, pulse, heartbeat)
        self.thread = threading.Thread(target=execute, args=(self.errand, {"KNOWN": "b"}))
        why = "no module named llmdreamer"
        self.job = Placed(
            box, self.is_over, self.cancel, lambda: why, folder / "output.log", heartbeat
        )

    def is_over(self) -> bool:
        return self.thread.ident is not None and not self.thread.is_alive()

    def cancel(self):
        self.cancelled = True

    def begin(self):
        self.thread.start()
        wait_until(lambda: (self.folder / "pid").exists() and (self.folder / "pid").read_text())
        return (self.folder / "pid").read_text().split()

    def end(self) -> int:
        wait_until(lambda: self.job.poll() is not None, seconds=30)
        self.thread.join()
        return self.job.poll()


@pytest.fixture
def place(tmp_path):
    return lambda *args, **kwargs: Place(tmp_path, *args, **kwargs)


def test_a_process_that_ends_has_its_exit_code(place):
    there = place("short")
    assert there.job.poll() is None
    assert there.begin()[1] == "a"
    assert there.end() == 0
    assert not there.errand.box.exists()


def test_a_process_is_asked_to_leave_by_sigterm_and_killed_by_sigkill(place, tmp_path):
    there = place()
    there.begin()
    there.job.terminate()
    assert (there.end(), there.cancelled) == (7, False)


def test_a_process_that_hears_nothing_is_killed(place):
    there = place("deaf")
    there.begin()
    there.job.terminate()
    there.job.kill()
    assert (there.end(), there.cancelled) == (-signal.SIGKILL, False)


def test_a_job_without_a_place_yet_is_cancelled_and_never_begins(place, monkeypatch):
    monkeypatch.setattr(remote, "LATE", 0.3)
    there = place()
    there.job.terminate()
    assert there.cancelled
    wait_until(lambda: there.job.poll() is not None, seconds=30)
    assert there.job.poll() == -signal.SIGKILL


def test_a_job_that_begins_after_all_leaves_at_once(place, tmp_path):
    there = place()
    there.job.terminate()
    there.thread.start()
    assert there.end() == 128 + signal.SIGTERM
    assert not (tmp_path / "pid").exists()


def test_a_place_that_vanishes_ends_its_process_and_its_scheduler_says_why(
    place, tmp_path, monkeypatch
):
    monkeypatch.setattr(remote, "LATE", 0.3)
    job = place().job
    job.is_over = lambda: True
    wait_until(lambda: job.poll() is not None, seconds=30)
    assert job.poll() == -signal.SIGKILL
    assert (tmp_path / "output.log").read_text() == "no module named llmdreamer\n"


def test_a_run_whose_places_all_vanish_has_failed_for_what_the_last_one_said(tmp_path):
    class Vanished:
        def poll(self) -> int:
            (tmp_path / "output.log").write_text("first\nno module named llmdreamer\n")
            return -signal.SIGKILL

    engine = SimpleNamespace(start=lambda order: Vanished(), close=lambda: None)
    program = WorkerOptions(["run"], engine, [], "eval/return", False, retries=1, stop_within=1)
    worker = Worker(RunTask(tmp_path, [], {}, "a run", 0), Slot(None, 1), program)
    worker.start()
    assert worker.has_exited()
    assert worker.outcome(interrupted=False) is None  # tried again
    worker.start()
    assert worker.has_exited()
    failed = worker.outcome(interrupted=False)
    assert failed.kind == "failed"
    assert failed.cause == (
        "ended by signal 9, 2 times without a new checkpoint;"
        " its last output: no module named llmdreamer"
    )


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("Job 7 failed\n  File 'a.py'\nOSError: no space\n\n----\n", "OSError: no space"),
        ("", ""),
    ],
)
def test_of_an_error_the_last_line_is_told(said, line):
    assert remote.last_of(RuntimeError(said)) == line
    assert remote.last_of(None) == ""


def test_a_place_that_falls_silent_is_given_up_though_its_scheduler_says_nothing(
    place, tmp_path, monkeypatch
):
    monkeypatch.setattr(remote, "LATE", 0.3)
    there = place(heartbeat=0.125)
    there.job.is_over = lambda: False
    for beat in range(6):
        (tmp_path / "box" / "began").write_text(str(beat))
        assert there.job.poll() is None
        time.sleep(0.25)
    wait_until(lambda: there.job.poll() is not None, seconds=30)
    assert (there.job.poll(), there.cancelled) == (-signal.SIGKILL, True)


def test_the_process_of_a_silent_driver_leaves(place):
    there = place(heartbeat=0.125)
    began = time.monotonic()
    there.begin()
    for number in range(5):
        (there.folder / "pulse").write_text(f"{number + 2}")
        time.sleep(0.3)
        assert there.job.poll() is None
    assert there.end() == 7
    assert time.monotonic() - began > 1.5


def test_an_order_is_carried_out_once_however_often_its_job_begins(place, tmp_path, capsys):
    there = place()
    pid, _ = there.begin()
    execute(there.errand)
    assert capsys.readouterr().out == "nothing is run: this order was begun before\n"
    assert (tmp_path / "pid").read_text().split()[0] == pid
    there.job.terminate()
    assert there.end() == 7
    execute(there.errand)
    assert capsys.readouterr().out == "nothing is run: the driver wants this no more\n"
    assert (tmp_path / "pid").read_text().split()[0] == pid
    assert not there.errand.box.exists()


def test_a_job_that_begins_after_its_driver_has_died_runs_nothing(place, tmp_path, capsys):
    there = place(heartbeat=0.125)
    there.errand.pulse.write_text(str(time.time() - 60))
    execute(there.errand)
    assert capsys.readouterr().out == "nothing is run: the driver has died\n"
    assert not (tmp_path / "pid").exists()


def test_a_driver_whose_clock_is_an_hour_behind_is_known_by_its_next_sign_of_life(place):
    there = place("short", heartbeat=5.0)

    def beats() -> bool:
        there.errand.pulse.write_text(str(time.time() - 3600))
        return (there.folder / "pid").exists()

    beats()
    there.thread.start()
    wait_until(beats)
    assert there.end() == 0


def test_a_process_whose_driver_has_washed_its_hands_of_it_leaves(place):
    there = place()
    pid, _ = there.begin()
    shutil.rmtree(there.errand.box)
    there.thread.join(timeout=60)
    assert is_gone(pid)
    assert not there.errand.box.exists()


# --- the engines themselves ---

TWO = ["seed=0,1", "hydra.sweeper.n_jobs=2", "hydra.sweeper.study_name=g"]


@pytest.mark.parametrize(
    ("answer", "is_there"),
    [
        ("echo PENDING", True),
        ("true", False),
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", False),
        ("echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1", True),
        ("exec sleep 100", True),
    ],
)
def test_a_job_is_gone_when_the_queue_says_so_not_when_it_is_silent(
    tmp_path, monkeypatch, answer, is_there
):
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\n{answer}\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "QUEUE_WITHIN", 10.0 if "sleep" not in answer else 0.3)
    assert is_queued("7") is is_there


@pytest.fixture
def submitit():
    return pytest.importorskip("submitit", reason="no submitit: pip install 'llmdreamer[submitit]'")


def test_a_grid_by_submitit_is_the_same_grid(submitit, sweeper: Sweeper):
    place = ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=3"]
    code, out = sweeper(*TWO, *place)
    assert code == 0, out
    assert [row["state"] for row in sweeper.rows()] == ["finished"] * 2
    assert [row["eval/return"] for row in sweeper.rows()] == ["10.0", "20.0"]
    assert [read_starts(cell)[0][2] for cell in sweeper.cells] == ["3", "3"]
    assert len(list(sweeper.folder.glob("outputs/sweeps/g/.jobs/submitit/*_result.pkl"))) == 2


def test_a_preempted_or_stopped_job_goes_on_from_its_checkpoint(submitit, sweeper: Sweeper):
    command = ["seed=0", "hydra.sweeper.study_name=g", "hydra/launcher=submitit_local"]
    slow = {"FAKE_RUN_STEP_SECONDS": "0.25", "FAKE_RUN_STEPS": "100"}

    def begun(count: int) -> str:
        """The process ID of the count-th process, once it has written a checkpoint of its own."""
        wait_until(lambda: sweeper.cells and len(read_starts(sweeper.cells[0])) == count)
        (cell,) = sweeper.cells
        *_, (first, pid, *_) = read_starts(cell)
        wait_until(lambda: len(checkpoints(cell)) > int(first))
        return pid

    driver = sweeper.start(*command, **slow)
    os.kill(int(begun(1)), signal.SIGTERM)  # as Slurm preempts: a checkpoint, exit code 143
    pid = begun(2)
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130, out
    assert is_gone(pid)
    code, out = sweeper(*command, FAKE_RUN_STEPS="100")
    assert code == 0, out
    (cell,) = sweeper.cells
    steps = [int(start[0]) for start in read_starts(cell)]
    assert len(steps) == 3
    assert steps == sorted({*steps})  # each went on where the one before had left
    assert sweeper.rows()[0]["eval/return"] == "100.0"
