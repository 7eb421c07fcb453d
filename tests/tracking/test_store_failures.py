"""Stores that fail: one line that says which failure it is, and training goes on."""

import logging
import os
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from refusals import assert_names, refused

from llmdreamer.config import Config
from llmdreamer.tracking import RunInfo, Tracker, upload_loop
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.parent import start_parent
from llmdreamer.tracking.record import MlflowRunRef, RunFiles, load
from llmdreamer.tracking.spool import Spool
from llmdreamer.tracking.store import connect, ensure_experiment
from llmdreamer.tracking.upload_loop import sync, upload_until_exit
from llmdreamer.tracking.uploader import Uploader
from llmdreamer.utils.errors import ConfigError

StartRecord = Callable[..., RunFiles]


def append(files: RunFiles, step: int) -> None:
    spool = Spool(files.metrics)
    spool.append({"a": float(step)}, step)
    spool.close()


def mlflow_id(folder: Path) -> str:
    mlflow_run = load(MlflowRunRef, folder / "mlflow.json")
    assert mlflow_run is not None
    assert mlflow_run.run_id is not None
    return mlflow_run.run_id


def database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///"))


def execute(uri: str, *statements: str) -> None:
    connection = sqlite3.connect(database(uri))
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_deleted_run_is_named_with_what_restores_it(start_record: StartRecord, uri: str):
    files = start_record(uri)
    append(files, 1)
    uploader = Uploader(files.folder)
    uploader.upload()
    run = mlflow_id(files.folder)
    connect(uri).delete_run(run)
    append(files, 2)
    for upload in (uploader.upload, lambda: sync(files.folder)):
        with refused(TrackingError, run, "deleted", f"mlflow runs restore --run-id {run}") as error:
            upload()
        assert "unreachable" not in str(error.value)
    connect(uri).restore_run(run)
    assert sync(files.folder) == 1


def test_deleted_experiment_is_named_with_what_restores_it(start_record: StartRecord, uri: str):
    experiment = ensure_experiment(uri, "test")
    connect(uri).delete_experiment(experiment)
    files = start_record(uri)
    restore = f"mlflow experiments restore --experiment-id {experiment}"
    with refused(TrackingError, "experiment test is deleted", "tracking.experiment", restore):
        Uploader(files.folder).upload()


@pytest.mark.parametrize(
    ("schema", "advice"),
    [("ffffffffffff", "a newer MLflow"), ("451aebb31d03", "mlflow db upgrade")],
)
def test_schema_of_another_mlflow_is_named(uri: str, schema: str, advice: str):
    execute(uri, f"UPDATE alembic_version SET version_num = '{schema}'")
    with refused(TrackingError, schema, advice) as error:
        ensure_experiment(uri, "test")
    assert "unreachable" not in str(error.value)


def test_experiment_with_a_name_too_long_for_mlflow_is_refused(compose: Callable[..., Config]):
    with refused(ConfigError, "tracking.experiment=xxx", "500", "600"):
        compose(f"tracking.experiment={'x' * 600}")


class Page(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        body = b"<html><title>Proxy\x1b[31m</title>\n<p>token=s3cret</p></html>"
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "part"), [(200, "not an MLflow server"), (403, "denies access"), (500, "HTTP 500")]
)
def test_page_instead_of_an_answer_is_described(status: int, part: str):
    handler = type("Handler", (Page,), {"status": status})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with refused(TrackingError, part) as error:
            ensure_experiment(f"http://127.0.0.1:{server.server_port}", "test")
        server.shutdown()
    message = str(error.value)
    assert not [part for part in ("unreachable", "<", "s3cret", "\x1b") if part in message]


def test_damaged_files_of_the_run_are_named(start_record: StartRecord, uri: str):
    files = start_record(uri)
    append(files, 1)
    with open(files.metrics, "ab") as file:
        file.write(b"damaged\n")
    with refused(TrackingError, files.metrics, "invalid record"):
        Uploader(files.folder).upload()
    files.mlflow_run.write_text("damaged")
    with refused(TrackingError, files.mlflow_run, "delete it"):
        Uploader(files.folder).upload()


@pytest.mark.parametrize("emptied", [False, True], ids=["removed", "emptied"])
def test_database_lost_during_a_run_is_made_again_with_all_records(
    start_record: StartRecord, uri: str, emptied: bool
):
    files = start_record(uri)
    append(files, 1)
    uploader = Uploader(files.folder)
    uploader.upload()
    if emptied:
        database(uri).write_bytes(b"")
    else:
        database(uri).unlink()
    append(files, 2)
    with suppress(TrackingError):  # the open connection still belongs to the old file
        uploader.upload()
    uploader.upload()
    history = connect(uri).get_metric_history(mlflow_id(files.folder), "a")
    assert sorted(metric.step for metric in history) == [1, 2]


def test_parent_run_is_made_again_after_its_database_was_removed(
    tmp_path: Path, uri: str, fresh_database: Path
):
    folder = tmp_path / "sweep"
    folder.mkdir()
    first = start_parent(folder, uri, "test", {}, "note")
    assert start_parent(folder, uri, "test", {}, "note") == first
    database(uri).unlink()
    database(uri).write_bytes(fresh_database.read_bytes())
    second = start_parent(folder, uri, "test", {}, "note")
    assert second != first
    assert mlflow_id(folder) == second.run_id
    assert connect(uri).get_run(second.run_id).info.status == "RUNNING"


def test_one_line_is_printed_for_each_change_of_state(
    start_record: StartRecord, uri: str, monkeypatch: pytest.MonkeyPatch
):
    """Ten failures of each of two kinds, then uploads work again, then they fail again."""
    files = start_record(uri)
    refuse = "CREATE TRIGGER refuse BEFORE INSERT ON metrics BEGIN SELECT RAISE(ABORT, 'no'); END"
    append(files, 1)
    attempts = 0
    lines: list[str] = []
    original = Uploader.upload

    def upload(uploader: Uploader) -> None:
        nonlocal attempts
        attempts += 1
        if attempts in (1, 25):
            append(files, attempts)
            execute(uri, refuse)
        elif attempts == 11:
            connect(uri).delete_run(mlflow_id(files.folder))
        elif attempts == 21:
            connect(uri).restore_run(mlflow_id(files.folder))
            execute(uri, "DROP TRIGGER refuse")
        original(uploader)

    monkeypatch.setattr(Uploader, "upload", upload)
    monkeypatch.setattr(upload_loop, "_has_ended", lambda owner, wait: attempts >= 29)
    assert upload_until_exit(files.folder, os.getppid(), lines.append) == 1
    assert len(lines) == 4, lines
    for line, part in zip(lines, ("(no)", "deleted", "works again", "(no)"), strict=True):
        assert_names(line, part)


@pytest.fixture
def tracker(folder: Path, uri: str) -> Iterator[Tracker]:
    tracker = Tracker.start(folder, RunInfo("run", {}, {}), uri, "test")
    yield tracker
    tracker.finish("FINISHED", timeout=0)


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_killed_upload_process_costs_one_line_and_no_record(
    tracker: Tracker, caplog: pytest.LogCaptureFixture
):
    assert tracker._process is not None
    os.kill(tracker._process.pid, signal.SIGKILL)
    wait_until(lambda: bool(caplog.messages))
    tracker.log({"a": 1.0}, 1)
    assert len(caplog.messages) == 1
    assert_names(caplog.messages[0], "-9", "python -m llmdreamer sync")
    assert tracker.files.metrics.read_text().count("\n") == 1


def test_system_that_starts_no_process_costs_the_uploads_only(
    folder: Path, uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(*args: object, **options: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    caplog.set_level(logging.WARNING)
    tracker = Tracker.start(folder, RunInfo("run", {}, {}), uri, "test")
    tracker.log({"a": 1.0}, 1)
    tracker.finish("FINISHED")
    assert len(caplog.messages) == 2
    assert_names(caplog.messages[0], "unavailable", "python -m llmdreamer sync")
    assert tracker.files.metrics.read_text().count("\n") == 1
