"""The laws of a live run: a real process that uploads, real kills, servers that are not there."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from refusals import assert_names, refused

from llmdreamer.cli.sync import main
from llmdreamer.tracking import RunInfo, Tracker
from llmdreamer.tracking.record import Known, RunFiles, Status, Wanted, load
from llmdreamer.tracking.spool import read
from llmdreamer.tracking.store import connect
from llmdreamer.utils.errors import ConfigError

INFO = RunInfo(name="run", params={"seed": 0}, tags={"arm": "scratch"}, parent_run_id="parent")


def run_of(folder: Path, uri: str):
    known = load(Known, RunFiles(folder).known)
    assert known is not None
    return connect(uri).get_run(known.run_id)


def status_of(folder: Path, uri: str) -> str | None:
    known = load(Known, RunFiles(folder).known)
    if known is None or known.run_id is None:
        return None
    return connect(uri).get_run(known.run_id).info.status


def steps_of(folder: Path, uri: str, key: str) -> list[int]:
    run_id = run_of(folder, uri).info.run_id
    return sorted(metric.step for metric in connect(uri).get_metric_history(run_id, key))


def eventually(what: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.2)


def test_a_run_is_recorded_and_a_resumed_one_goes_on_with_it(folder: Path, uri: str):
    config = folder / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("seed: 0")
    info = RunInfo("run", {"seed": 0}, {"arm": "scratch"}, "parent", config)
    tracker = Tracker.start(folder, info, uri, "test")
    tracker.log({"loss": 1.0}, 10)
    cursor = tracker.offset()
    tracker.log({"loss": 0.5}, 20)
    tracker.finish("KILLED", timeout=60)
    first = run_of(folder, uri)
    assert first.info.status == "KILLED"
    assert first.data.tags["mlflow.parentRunId"] == "parent"

    tracker = Tracker.start(folder, info, uri, "test", cursor=cursor)
    eventually(lambda: status_of(folder, uri) == "RUNNING")
    tracker.log({"loss": 0.5}, 20)
    tracker.log({"loss": 0.25}, 30)
    tracker.finish("FINISHED", timeout=60)
    tracker.finish("FAILED")  # the first word counts
    second = run_of(folder, uri)
    assert tracker.run_id == first.info.run_id
    assert second.info.status == "FINISHED"
    assert steps_of(folder, uri, "loss") == [10, 20, 30]
    assert connect(uri).list_artifacts(first.info.run_id)[0].path == "config.yaml"


@pytest.mark.parametrize(("told", "status"), [("KILLED", "KILLED"), ("FAILED", "FAILED")])
def test_a_run_that_begins_anew_is_another_in_mlflow(
    folder: Path, uri: str, told: Status, status: str
):
    """Nothing of the life before is its own: neither parameters, nor values, nor files."""
    first = RunInfo("first", {"batch": 16}, {"arm": "scratch"})
    tracker = Tracker.start(folder, first, uri, "test")
    tracker.log({"loss": 1.0}, 10)
    (folder / "old.txt").write_text("of the life before")
    tracker.artifact(folder / "old.txt")
    tracker.finish(told, timeout=60)
    old = run_of(folder, uri).info
    before = load(Wanted, RunFiles(folder).wanted)

    tracker = Tracker.start(folder, RunInfo("second", {"batch": 8}, {}, "parent"), uri, "test")
    tracker.log({"loss": 0.5}, 10)
    tracker.finish("FINISHED", timeout=60)
    new = run_of(folder, uri)
    assert new.info.run_id != old.run_id
    assert (new.info.run_name, new.data.params) == ("second", {"batch": "8"})
    assert new.data.tags["mlflow.parentRunId"] == "parent"
    assert new.info.start_time > 1000 * before.started
    assert [m.value for m in connect(uri).get_metric_history(new.info.run_id, "loss")] == [0.5]
    assert connect(uri).list_artifacts(new.info.run_id) == []
    kept = connect(uri).get_run(old.run_id)
    assert (kept.info.status, kept.data.metrics) == (status, {"loss": 1.0})


def test_a_run_whose_end_nobody_told_is_ended_where_its_folder_begins_anew(folder: Path, uri: str):
    """A machine that went down takes the uploader along, and MLflow goes on to say RUNNING."""
    with killed(folder, uri) as uploader:
        eventually(lambda: status_of(folder, uri) and steps_of(folder, uri, "a"))
        os.kill(uploader, signal.SIGKILL)
    old = run_of(folder, uri).info
    assert old.status == "RUNNING"
    newest = (folder / "metrics.jsonl").stat().st_mtime
    tracker = Tracker.start(folder, INFO, uri, "test")
    tracker.finish("FINISHED", timeout=60)
    ended = connect(uri).get_run(old.run_id).info
    assert (ended.status, ended.end_time) == ("KILLED", int(1000 * newest))
    assert run_of(folder, uri).info.status == "FINISHED"


LIVES = """
import sys, time
from pathlib import Path
from llmdreamer.tracking import RunInfo, Tracker
tracker = Tracker.start(Path(sys.argv[1]), RunInfo("run", {}, {}), sys.argv[2], "test")
for step in range(500):
    tracker.log({"a": step, "b": -step}, step)
print(tracker._process.pid, flush=True)
time.sleep(600)
"""


@contextmanager
def killed(folder: Path, uri: str) -> Iterator[int]:
    """A run of 500 rows that SIGKILL ends with the block; the process ID of its uploader."""
    command = [sys.executable, "-c", LIVES, str(folder), uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)


def test_a_killed_run_is_uploaded_to_its_last_row_and_marked(folder: Path, uri: str):
    with killed(folder, uri):
        pass
    eventually(lambda: status_of(folder, uri) == "KILLED")
    assert steps_of(folder, uri, "a") == steps_of(folder, uri, "b") == list(range(500))


@pytest.mark.parametrize("uploaded", [0, 1], ids=["before a row", "on the way"])
def test_of_a_run_killed_with_its_uploader_the_rest_is_replayed(
    folder: Path, uri: str, uploaded: int
):
    with killed(folder, uri) as uploader:
        if uploaded:
            eventually(lambda: status_of(folder, uri) and steps_of(folder, uri, "a"))
        os.kill(uploader, signal.SIGKILL)
    eventually(lambda: main([str(folder)]) == 0)  # the dead take a moment to let go of the lock
    assert status_of(folder, uri) == "KILLED"
    assert steps_of(folder, uri, "a") == steps_of(folder, uri, "b") == list(range(500))


def test_without_a_server_the_run_is_not_held_up_and_sync_replays_it(
    folder: Path, uri: str, dead_uri: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING, "llmdreamer.tracking")
    tracker = Tracker.start(folder, INFO, dead_uri, "test")
    row = {"loss": 0.5, "return": 100.0}
    # Processor time: on a busy machine the clock also counts what other processes take.
    started = time.thread_time()
    for step in range(2000):
        tracker.log(row, step)
    held_up = time.thread_time() - started
    assert held_up < 0.05

    eventually(lambda: "unreachable" in caplog.text)
    warning = next(record for record in caplog.messages if "unreachable" in record)
    assert_names(warning, f"{folder}/metrics.jsonl", f"python -m llmdreamer sync {folder}")
    started = time.monotonic()
    tracker.finish("FINISHED")
    assert time.monotonic() - started < 10.5
    assert tracker.run_id is None

    assert main([str(folder.parent), "--uri", uri]) == 0
    assert main([str(folder.parent), "--uri", uri]) == 0
    assert steps_of(folder, uri, "loss") == list(range(2000))
    assert run_of(folder, uri).info.status == "FINISHED"


def test_a_server_that_hangs_costs_the_end_of_a_run_ten_seconds_at_most(
    folder: Path, hung_uri: str
):
    tracker = Tracker.start(folder, INFO, hung_uri, "test")
    tracker.log({"loss": 0.5}, 1)
    time.sleep(4)  # until the upload waits for an answer
    started = time.monotonic()
    tracker.finish("FINISHED")
    assert time.monotonic() - started < 10.5
    assert [row.env_step for row in read(folder / "metrics.jsonl")] == [1]


def test_a_cursor_that_the_spool_does_not_reach_is_refused_before_training(folder: Path, uri: str):
    with refused(ConfigError, f"resume={folder}", "metrics.jsonl", "checkpoint"):
        Tracker.start(folder, INFO, uri, "test", cursor=1000)


def test_sync_of_a_folder_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert_names(err, tmp_path)


def test_importing_the_tracker_imports_neither_mlflow_nor_torch():
    program = "import sys, llmdreamer.tracking; print({'mlflow', 'torch'} & set(sys.modules))"
    out = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert out.strip() == "set()"
