"""The laws of waiting for a server: uploads are patient while nobody waits for them."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmdreamer.tracking import store
from llmdreamer.tracking.record import RunFiles
from llmdreamer.tracking.shipper import Shipper
from llmdreamer.tracking.spool import Spool
from llmdreamer.tracking.store import TrackingError
from llmdreamer.tracking.uploads import follow, sync

Describe = Callable[..., RunFiles]
SLOW = 1.5  # seconds for an answer, more than HURRIED is in these tests


class Standin(ThreadingHTTPServer):
    """As much of an MLflow server as uploads speak to, which may take its time for one question."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.uri = f"http://127.0.0.1:{self.server_port}"
        self.slow = ""  # how the path of that question ends
        self.told: list[int] = []  # steps of metrics, each as often as it came
        self.answered = threading.Event()  # that metrics have come


class Answer(BaseHTTPRequestHandler):
    server: Standin

    def do_GET(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
        metrics = asked.get("metrics", [])
        self.server.told += [int(metric["step"]) for metric in metrics]
        path = self.path.partition("?")[0]
        if self.server.slow and path.endswith(self.server.slow):
            time.sleep(SLOW)
        info = {"run_id": "1" * 32, "experiment_id": "1"}
        found = {
            "experiment": {"experiment_id": "1"},
            "run": {"info": info},
            "run_info": info,
        }
        body = json.dumps(found).encode()
        with suppress(OSError):  # who asked has hung up
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        if metrics:
            self.server.answered.set()

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """In a process where HURRIED is a second."""
    monkeypatch.setattr(store, "HURRIED", "1")
    monkeypatch.setitem(store._ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with Standin() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def run(described: Describe, server: Standin) -> RunFiles:
    files = described(server.uri)
    spool = Spool(files.metrics)
    for step in (1, 2):
        spool.append({"a": 0.5}, step)
    spool.close()
    return files


@pytest.fixture
def uploads(run: RunFiles, server: Standin, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Upload a run that ends as soon as its rows have been answered for; the uploader's exit code."""

    def follow_it() -> int:
        reading, writing = os.pipe()
        monkeypatch.setattr("sys.stdin", os.fdopen(reading))
        end = threading.Thread(target=lambda: (server.answered.wait(60), os.close(writing)))
        end.start()
        code = follow(run.folder, os.getppid())
        end.join()
        return code

    return follow_it


def test_who_holds_up_others_does_not_wait_for_a_slow_server(server: Standin, run: RunFiles):
    server.slow = "log-batch"
    with pytest.raises(TrackingError, match="timed out"):
        Shipper(run.folder).ship()


def test_a_live_runs_uploads_wait_for_a_slow_server_and_ask_it_once(
    server: Standin, uploads: Callable[[], int]
):
    server.slow = "log-batch"
    assert uploads() == 0
    assert server.told == [1, 2]


def test_the_uploads_of_a_run_that_has_ended_wait_no_longer(
    server: Standin, uploads: Callable[[], int], capsys: pytest.CaptureFixture[str]
):
    server.slow = "runs/update"  # by which the run begins and ends
    assert uploads() == 1
    assert server.told == [1, 2]
    assert "replay with 'python -m llmdreamer sync" in capsys.readouterr().err


def test_a_replay_waits_for_a_slow_server(server: Standin, run: RunFiles):
    server.slow = "runs/update"
    assert sync(run.folder) == 2
    assert server.told == [1, 2]


def test_whoever_sets_the_time_for_an_answer_keeps_it(
    server: Standin, run: RunFiles, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store, "HURRIED", "8")
    server.slow = "log-batch"
    with pytest.raises(TrackingError, match="timed out"):
        sync(run.folder)
