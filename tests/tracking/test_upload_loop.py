"""Timeouts of uploads: long while a run trains and in `sync`, short where something waits."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from refusals import assert_names

from llmdreamer.tracking import store
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.record import RunFiles
from llmdreamer.tracking.spool import Spool
from llmdreamer.tracking.upload_loop import sync, upload_until_exit
from llmdreamer.tracking.uploader import Uploader

StartRecord = Callable[..., RunFiles]
SLOW_SECONDS = 1.5  # seconds until an answer; SHORT_TIMEOUT_SECONDS is 1 in these tests


class FakeServer(ThreadingHTTPServer):
    """The requests of an MLflow server that uploads use; one of them can be slow."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeServerHandler)
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.slow = ""  # end of the path of the slow request
        self.steps: list[int] = []  # steps of the metrics received, with repetitions
        self.received = threading.Event()  # set once metrics were received and answered


class FakeServerHandler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        metrics = request.get("metrics", [])
        self.server.steps += [int(metric["step"]) for metric in metrics]
        path = self.path.partition("?")[0]
        if self.server.slow and path.endswith(self.server.slow):
            time.sleep(SLOW_SECONDS)
        info = {"run_id": "1" * 32, "experiment_id": "1"}
        answer = {
            "experiment": {"experiment_id": "1"},
            "run": {"info": info},
            "run_info": info,
        }
        body = json.dumps(answer).encode()
        with suppress(OSError):  # the client has closed the connection
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        if metrics:
            self.server.received.set()

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A fake server, in a process where SHORT_TIMEOUT_SECONDS is 1."""
    monkeypatch.setattr(store, "SHORT_TIMEOUT_SECONDS", "1")
    monkeypatch.setitem(store._MLFLOW_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def run(start_record: StartRecord, server: FakeServer) -> RunFiles:
    files = start_record(server.uri)
    spool = Spool(files.metrics)
    for step in (1, 2):
        spool.append({"a": 0.5}, step)
    spool.close()
    return files


@pytest.fixture
def uploads(
    run: RunFiles, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], int]:
    """Upload a run that ends once its metrics are received; return the exit code of the upload."""

    def upload() -> int:
        reading, writing = os.pipe()
        monkeypatch.setattr("sys.stdin", os.fdopen(reading))
        end = threading.Thread(target=lambda: (server.received.wait(60), os.close(writing)))
        end.start()
        code = upload_until_exit(run.folder, os.getppid())
        end.join()
        return code

    return upload


def test_upload_with_the_short_timeout_does_not_wait_for_a_slow_server(
    server: FakeServer, run: RunFiles
):
    server.slow = "log-batch"
    with pytest.raises(TrackingError, match="timed out"):
        Uploader(run.folder).upload()


def test_uploads_of_a_running_run_wait_for_a_slow_server(
    server: FakeServer, uploads: Callable[[], int]
):
    server.slow = "log-batch"
    assert uploads() == 0
    assert server.steps == [1, 2]


def test_last_upload_of_a_run_does_not_wait_for_a_slow_server(
    server: FakeServer,
    run: RunFiles,
    uploads: Callable[[], int],
    capsys: pytest.CaptureFixture[str],
):
    server.slow = "runs/update"  # the request that starts and ends a run
    assert uploads() == 1
    assert server.steps == [1, 2]
    assert_names(capsys.readouterr().err, f"python -m llmdreamer sync {run.folder}")


def test_sync_waits_for_a_slow_server(server: FakeServer, run: RunFiles):
    server.slow = "runs/update"
    assert sync(run.folder) == 2
    assert server.steps == [1, 2]


def test_timeout_set_by_the_user_is_kept(
    server: FakeServer, run: RunFiles, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "SHORT_TIMEOUT_SECONDS", "8")
    server.slow = "log-batch"
    with pytest.raises(TrackingError, match="timed out"):
        sync(run.folder)
