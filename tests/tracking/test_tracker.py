"""Tracking of a running process: real uploads in a second process, real kills, missing servers."""

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
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.record import (
    RUN_RECORD_FILE,
    MlflowRunRef,
    RunFiles,
    RunRecord,
    load,
)
from llmdreamer.tracking.spool import read_metrics
from llmdreamer.tracking.store import connect
from llmdreamer.utils.errors import ConfigError

INFO = RunInfo(name="run", params={"seed": 0}, tags={"arm": "scratch"}, parent_run_id="parent")


def mlflow_run_of(folder: Path, uri: str):
    mlflow_run = load(MlflowRunRef, RunFiles(folder).mlflow_run)
    assert mlflow_run is not None
    return connect(uri).get_run(mlflow_run.run_id)


def status_of(folder: Path, uri: str) -> str | None:
    mlflow_run = load(MlflowRunRef, RunFiles(folder).mlflow_run)
    if mlflow_run is None or mlflow_run.run_id is None:
        return None
    return connect(uri).get_run(mlflow_run.run_id).info.status


def steps_of(folder: Path, uri: str, key: str) -> list[int]:
    run_id = mlflow_run_of(folder, uri).info.run_id
    return sorted(metric.step for metric in connect(uri).get_metric_history(run_id, key))


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} seconds"
        time.sleep(0.2)


def test_resumed_run_continues_its_mlflow_run(folder: Path, uri: str):
    config = folder / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text("seed: 0")
    info = RunInfo("run", {"seed": 0}, {"arm": "scratch"}, "parent", config)
    tracker = Tracker.start(folder, info, uri, "test")
    tracker.log({"loss": 1.0}, 10)
    cursor = tracker.offset()
    tracker.log({"loss": 0.5}, 20)
    tracker.finish("KILLED", timeout=60)
    first = mlflow_run_of(folder, uri)
    assert first.info.status == "KILLED"
    assert first.data.tags["mlflow.parentRunId"] == "parent"

    tracker = Tracker.start(folder, info, uri, "test", cursor=cursor)
    wait_until(lambda: status_of(folder, uri) == "RUNNING")
    tracker.log({"loss": 0.5}, 20)
    tracker.log({"loss": 0.25}, 30)
    tracker.finish("FINISHED", timeout=60)
    tracker.finish("FAILED")  # only the first call counts
    second = mlflow_run_of(folder, uri)
    assert tracker.run_id == first.info.run_id
    assert second.info.status == "FINISHED"
    assert steps_of(folder, uri, "loss") == [10, 20, 30]
    assert connect(uri).list_artifacts(first.info.run_id)[0].path == "config.yaml"


def test_run_that_starts_over_is_a_new_mlflow_run(folder: Path, uri: str):
    """It has no parameters, values or files of the earlier attempt."""
    first = RunInfo("first", {"batch": 16}, {"arm": "scratch"})
    tracker = Tracker.start(folder, first, uri, "test")
    tracker.log({"loss": 1.0}, 10)
    (folder / "old.txt").write_text("of the earlier attempt")
    tracker.log_artifact(folder / "old.txt")
    tracker.finish("FAILED", timeout=60)
    old = mlflow_run_of(folder, uri).info
    before = load(RunRecord, RunFiles(folder).run_record)

    tracker = Tracker.start(folder, RunInfo("second", {"batch": 8}, {}, "parent"), uri, "test")
    tracker.log({"loss": 0.5}, 10)
    tracker.finish("FINISHED", timeout=60)
    new = mlflow_run_of(folder, uri)
    assert new.info.run_id != old.run_id
    assert (new.info.run_name, new.data.params) == ("second", {"batch": "8"})
    assert new.data.tags["mlflow.parentRunId"] == "parent"
    assert new.info.start_time > 1000 * before.started
    assert [m.value for m in connect(uri).get_metric_history(new.info.run_id, "loss")] == [0.5]
    assert connect(uri).list_artifacts(new.info.run_id) == []
    kept = connect(uri).get_run(old.run_id)
    assert (kept.info.status, kept.data.metrics) == ("FAILED", {"loss": 1.0})


def test_run_left_running_by_a_crash_is_ended_when_its_folder_starts_over(folder: Path, uri: str):
    """A crash of the machine also kills the uploader, and MLflow still shows RUNNING."""
    with killed_run(folder, uri) as uploader:
        wait_until(lambda: status_of(folder, uri) and steps_of(folder, uri, "a"))
        os.kill(uploader, signal.SIGKILL)
    old = mlflow_run_of(folder, uri).info
    assert old.status == "RUNNING"
    newest = (folder / "metrics.jsonl").stat().st_mtime
    tracker = Tracker.start(folder, INFO, uri, "test")
    tracker.finish("FINISHED", timeout=60)
    ended = connect(uri).get_run(old.run_id).info
    assert (ended.status, ended.end_time) == ("KILLED", int(1000 * newest))
    assert mlflow_run_of(folder, uri).info.status == "FINISHED"


PROGRAM = """
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
def killed_run(folder: Path, uri: str) -> Iterator[int]:
    """Start a run with 500 records, yield the process ID of its uploader, and kill the run."""
    command = [sys.executable, "-c", PROGRAM, str(folder), uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)


def test_killed_run_is_uploaded_completely_and_marked_killed(folder: Path, uri: str):
    with killed_run(folder, uri):
        pass
    wait_until(lambda: status_of(folder, uri) == "KILLED")
    assert steps_of(folder, uri, "a") == steps_of(folder, uri, "b") == list(range(500))


@pytest.mark.parametrize("uploaded", [0, 1], ids=["before any upload", "after an upload"])
def test_sync_uploads_the_rest_of_a_run_killed_with_its_uploader(
    folder: Path, uri: str, uploaded: int
):
    with killed_run(folder, uri) as uploader:
        if uploaded:
            wait_until(lambda: status_of(folder, uri) and steps_of(folder, uri, "a"))
        os.kill(uploader, signal.SIGKILL)
    wait_until(
        lambda: main([str(folder)]) == 0
    )  # a killed process releases the lock after a moment
    assert status_of(folder, uri) == "KILLED"
    assert steps_of(folder, uri, "a") == steps_of(folder, uri, "b") == list(range(500))


def test_run_without_a_server_is_not_delayed_and_sync_uploads_it(
    folder: Path, uri: str, dead_uri: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING, "llmdreamer.tracking")
    tracker = Tracker.start(folder, INFO, dead_uri, "test")
    metrics = {"loss": 0.5, "return": 100.0}
    # Processor time: on a busy machine, wall time includes other processes.
    started = time.thread_time()
    for step in range(2000):
        tracker.log(metrics, step)
    seconds = time.thread_time() - started
    assert seconds < 0.05

    wait_until(lambda: "unreachable" in caplog.text)
    warning = next(record for record in caplog.messages if "unreachable" in record)
    assert_names(warning, f"{folder}/metrics.jsonl", f"python -m llmdreamer sync {folder}")
    started = time.monotonic()
    tracker.finish("FINISHED")
    assert time.monotonic() - started < 10.5
    assert tracker.run_id is None

    assert main([str(folder.parent), "--uri", uri]) == 0
    assert main([str(folder.parent), "--uri", uri]) == 0
    assert steps_of(folder, uri, "loss") == list(range(2000))
    assert mlflow_run_of(folder, uri).info.status == "FINISHED"


def test_finish_with_a_hanging_server_returns_within_ten_seconds(folder: Path, hung_uri: str):
    tracker = Tracker.start(folder, INFO, hung_uri, "test")
    tracker.log({"loss": 0.5}, 1)
    time.sleep(4)  # until the upload waits for an answer
    started = time.monotonic()
    tracker.finish("FINISHED")
    assert time.monotonic() - started < 10.5
    assert [record.env_step for record in read_metrics(folder / "metrics.jsonl")] == [1]


def test_start_refuses_a_cursor_beyond_the_spool(folder: Path, uri: str):
    with refused(ConfigError, f"resume={folder}", "metrics.jsonl", "checkpoint"):
        Tracker.start(folder, INFO, uri, "test", cursor=1000)


def test_sync_of_a_folder_without_runs_exits_2_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main([str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert_names(err, tmp_path)


def test_sync_goes_on_after_a_damaged_run_and_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, text in (("a", "{"), ("b", "{}"), ("c", "{}")):
        record = tmp_path / name / RUN_RECORD_FILE
        record.parent.mkdir(parents=True)
        record.write_text(text)
    uploaded = []

    def upload(folder: Path, uri: str | None) -> int:
        if folder.name == "a":
            load(RunRecord, folder / RUN_RECORD_FILE)
        if folder.name == "b":
            raise TrackingError("offline")
        uploaded.append(folder.name)
        return 1

    monkeypatch.setattr("llmdreamer.cli.sync.sync", upload)
    assert (main([str(tmp_path)]), uploaded) == (2, ["c"])
    assert_names(capsys.readouterr().err.splitlines()[-1], tmp_path / "a", tmp_path / "b")


def test_tracking_imports_neither_mlflow_nor_torch():
    program = "import sys, llmdreamer.tracking; print({'mlflow', 'torch'} & set(sys.modules))"
    out = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert out.strip() == "set()"
