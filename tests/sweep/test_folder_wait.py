"""A run's folder that another process still holds: orphans are killed, all others are waited for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sweep_helpers import is_gone, read_starts, wait_until

from llmdreamer.sweep import folder_wait
from llmdreamer.sweep.folder_wait import FolderWait
from llmdreamer.sweep.grid import Grid
from llmdreamer.sweep.run_lock import DRIVER_VARIABLE

HOLDER = """
import fcntl, os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
if sys.argv[2] == "child" and os.fork() > 0:
    os._exit(0)  # only the child keeps the lock
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def hold(tmp_path):
    """Start a process that holds the folder and ignores SIGTERM."""
    holders = []

    def start(driver: str | None, kind: str = "process") -> subprocess.Popen[str]:
        variables = {key: value for key, value in os.environ.items() if key != DRIVER_VARIABLE}
        if driver is not None:
            variables[DRIVER_VARIABLE] = driver
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "run.lock"), kind]
        holder = subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        holders.append(holder)
        return holder

    yield start
    for holder in holders:
        try:
            os.killpg(holder.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        holder.wait()


@pytest.fixture
def dead_driver() -> str:
    process = subprocess.Popen(["true"])
    process.wait()
    return str(process.pid)


def poll(wait: FolderWait, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if wait.is_over():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch):
    monkeypatch.setattr(folder_wait, "POLL_SECONDS", 0.05)


@pytest.mark.parametrize("kind", ["process", "child"])
def test_orphan_is_killed_after_stop_within(hold, dead_driver, tmp_path, caplog, kind):
    """An orphan is a process of a dead driver, or a child of one that has ended."""
    hold(dead_driver, kind)
    wait, started_at = FolderWait(tmp_path, "trial 3", stop_within=1.0), time.monotonic()
    assert poll(wait, seconds=60)
    assert time.monotonic() - started_at > 1.0
    first, second = caplog.messages
    assert "trial 3" in first and "driver has died" in first and "1 s" in first
    assert "trial 3: killed process" in second


@pytest.mark.parametrize("driver", [None, str(os.getpid())], ids=["user", "living"])
def test_run_of_the_user_or_of_a_living_driver_is_not_killed(hold, tmp_path, caplog, driver):
    holder = hold(driver)
    assert not poll(FolderWait(tmp_path, "trial 3", stop_within=0.1), seconds=1.0)
    assert holder.poll() is None
    (line,) = caplog.messages
    assert str(holder.pid) in line


def test_free_folder_is_not_waited_for(tmp_path, caplog):
    assert FolderWait(tmp_path, "trial 3", stop_within=60).is_over()
    assert not caplog.messages


def test_deaf_run_of_a_killed_driver_is_killed_by_the_same_command(sweeper):
    command = ["seed=0", "hydra.sweeper.stop_within=2"]
    slow = {"FAKE_RUN_STEPS": "100000", "FAKE_RUN_STEP_SECONDS": "0.1"}
    first = sweeper.start(*command, FAKE_RUN_DEAF="1", **slow)
    wait_until(lambda: sweeper.cells and len(list(sweeper.cells[0].glob("checkpoints/*"))) > 1)
    (start,) = read_starts(sweeper.cells[0])
    first.kill()
    first.communicate()
    code, out = sweeper(*command, FAKE_RUN_STEPS="5")
    assert code == 0, out
    wait_until(lambda: is_gone(start[1]))  # the system reaps it a moment later
    assert [line for line in out.splitlines() if f"killed process {start[1]}" in line], out
    assert "stopping: process" in (Path(sweeper.cells[0]) / "output.log").read_text()


def test_rerun_kills_a_deaf_orphan(make_plan, hold, dead_driver, tmp_path):
    for plan in make_plan("rerun=true", "hydra.sweeper.stop_within=0.2"):
        grid = Grid(plan)
        (cell,) = grid._cells.values()
        cell.folder.mkdir(parents=True)
        (cell.folder / "run.lock").symlink_to(tmp_path / "run.lock")
        orphan = hold(dead_driver)
        assert grid.next_task() is None
        wait_until(lambda grid=grid: grid.next_task() is not None, timeout_seconds=60)
        assert orphan.wait() == -signal.SIGKILL
        grid.close()
