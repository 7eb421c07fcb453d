"""Uploads in this process, against real SQLite stores."""

import math
import shutil
import sqlite3
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from refusals import assert_names

from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.record import MlflowRunRef, RunFiles, UploadCursor, load, save
from llmdreamer.tracking.spool import Spool
from llmdreamer.tracking.store import connect, ensure_experiment
from llmdreamer.tracking.upload_loop import sync
from llmdreamer.tracking.uploader import KEY_TAG, Uploader, reset_record, rewind_record

StartRecord = Callable[..., RunFiles]


def history(files: RunFiles, uri: str, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of a metric in MLflow, sorted by step."""
    metrics = connect(uri).get_metric_history(run_id(files), key)
    return sorted((metric.step, metric.value) for metric in metrics)


def run_id(files: RunFiles) -> str:
    mlflow_run = load(MlflowRunRef, files.mlflow_run)
    assert mlflow_run is not None
    assert mlflow_run.run_id is not None
    return mlflow_run.run_id


def upload(files: RunFiles) -> Uploader:
    uploader = Uploader(files.folder)
    uploader.upload()
    return uploader


def append(files: RunFiles, *values: tuple[int, float]) -> int:
    """Append (step, value) of the metric `a` to the spool; return the offset after them."""
    spool = Spool(files.metrics)
    for step, value in values:
        spool.append({"a": value}, step)
    return spool.offset()


def forget_success(files: RunFiles) -> None:
    """Leave the files as a kill between an upload and the save of its success leaves them."""
    cursor = load(UploadCursor, files.upload_cursor)
    cursor.uploaded_bytes = 0
    save(cursor, files.upload_cursor)


def test_upload_sends_every_metric_of_the_spool(start_record: StartRecord, uri: str):
    files = start_record(uri)
    spool = Spool(files.metrics)
    for step in range(30):
        # More metrics than one call accepts, and names that MLflow refuses.
        spool.append({f"m[{k}]": step + k / 100 for k in range(50)}, step)
    uploader = upload(files)
    assert uploader.uploaded_records == 30
    for k in (0, 49):
        assert history(files, uri, f"m_{k}_") == [(step, step + k / 100) for step in range(30)]


def test_upload_splits_a_record_with_more_metrics_than_one_call_accepts(
    start_record: StartRecord, uri: str
):
    files = start_record(uri)
    Spool(files.metrics).append({f"m{k}": float(k) for k in range(2500)}, 1)
    upload(files)
    run = connect(uri).get_run(run_id(files))
    assert run.data.metrics == {f"m{k}": float(k) for k in range(2500)}


def test_upload_keeps_nan_and_infinity(start_record: StartRecord, uri: str):
    files = start_record(uri)
    append(files, (1, math.nan), (2, math.inf))
    upload(files)
    (_, first), (_, second) = history(files, uri, "a")
    assert math.isnan(first)
    assert second > 1e308  # MLflow's databases store infinity as the largest double


def test_upload_sets_name_status_params_and_tags(start_record: StartRecord, uri: str):
    params = {f"p{k}": k for k in range(150)} | {"long": "x" * 7000}
    files = start_record(uri, params=params, tags={"arm": "scratch", "mlflow.parentRunId": "abc"})
    upload(files)
    run = connect(uri).get_run(run_id(files))
    assert run.info.run_name == "run"
    assert run.info.status == "RUNNING"
    assert len(run.data.params) == 151
    assert run.data.params["long"].endswith("[cut: 7000 characters in all]")
    assert run.data.tags["mlflow.parentRunId"] == "abc"


def test_upload_after_a_locked_database_has_no_gap_and_no_duplicate(
    start_record: StartRecord, uri: str
):
    files = start_record(uri)
    append(files, (0, 0.0))
    uploader = upload(files)
    append(files, *((step, float(step)) for step in range(1, 50)))
    other = sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TrackingError, match="locked"):
        uploader.upload()
    other.close()
    uploader.upload()
    assert history(files, uri, "a") == [(step, float(step)) for step in range(50)]


def test_upload_after_a_full_disk_has_no_gap_and_no_duplicate(
    start_record: StartRecord, uri: str, disk: Callable[[str], Path]
):
    database = Path(uri.removeprefix("sqlite:///"))
    path = disk(f"size={database.stat().st_size + 2**18}") / "mlflow.db"
    shutil.copy(database, path)
    files = start_record(f"sqlite:///{path}")
    append(files, *((step, float(step)) for step in range(5000)))
    uploader = Uploader(files.folder)
    with pytest.raises(TrackingError, match="full"):
        uploader.upload()
    disk("size=64m")
    uploader.upload()
    assert history(files, f"sqlite:///{path}", "a") == [(step, float(step)) for step in range(5000)]


def test_kill_before_the_cursor_is_saved_makes_no_duplicates(start_record: StartRecord, uri: str):
    files = start_record(uri)
    append(files, (1, 1.0), (2, math.nan))
    upload(files)
    forget_success(files)
    append(files, (3, 3.0))
    upload(files)
    assert [step for step, _ in history(files, uri, "a")] == [1, 2, 3]


@pytest.mark.parametrize("confirmed", [True, False])
def test_steps_repeated_after_a_resume_keep_their_uploaded_values(
    start_record: StartRecord, uri: str, confirmed: bool
):
    files = start_record(uri)
    cursor = append(files, (1, 1.0))
    append(files, (2, 2.0), (3, 3.0))
    upload(files)
    append(files, (4, 4.0))  # not uploaded yet
    if not confirmed:
        forget_success(files)
    rewind_record(files, cursor)
    # Steps 2 and 3 are repeated; their values differ as timings do. Step 5 is new.
    append(files, (2, 2.1), (3, 3.1), (4, 4.1), (5, 5.1))
    upload(files)
    assert history(files, uri, "a") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.1), (5, 5.1)]


def test_steps_repeated_after_two_resumes_keep_their_uploaded_values(
    start_record: StartRecord, uri: str
):
    files = start_record(uri)
    cursor = append(files, (1, 1.0))
    for difference in (0.0, 0.1, 0.2):
        rewind_record(files, cursor)
        append(files, (2, 2 + difference), (3, 3 + difference))
        upload(files)
    assert history(files, uri, "a") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_rewind_completes_after_a_kill_in_an_earlier_rewind(start_record: StartRecord, uri: str):
    files = start_record(uri)
    cursor = append(files, (1, 1.0))
    end = append(files, (2, 2.0))
    upload(files)
    complete = files.metrics.read_bytes()
    rewind_record(files, cursor)
    files.metrics.write_bytes(complete)  # as if killed before the last step of the rewind
    rewind_record(files, cursor)
    assert files.metrics.stat().st_size == cursor < end
    append(files, (2, 2.5))
    upload(files)
    assert history(files, uri, "a") == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("deletions", range(4))
def test_reset_completes_after_a_kill_in_an_earlier_reset(
    start_record: StartRecord, uri: str, monkeypatch: pytest.MonkeyPatch, deletions: int
):
    files = start_record(uri)
    append(files, (1, 1.0))
    upload(files)
    old = load(MlflowRunRef, files.mlflow_run)
    unlink, remaining = Path.unlink, [True] * deletions

    def unlink_until_killed(path: Path, missing_ok: bool = False) -> None:
        remaining.pop()  # an IndexError stands for the kill
        unlink(path, missing_ok)

    with monkeypatch.context() as patched, pytest.raises(IndexError):
        patched.setattr(Path, "unlink", unlink_until_killed)
        reset_record(files)
    reset_record(files)
    start_record(uri, params={"seed": 1})
    append(files, (1, 1.5))
    upload(files)
    assert load(MlflowRunRef, files.mlflow_run).run_id != old.run_id
    assert history(files, uri, "a") == [(1, 1.5)]
    assert connect(uri).get_run(old.run_id).info.status == "KILLED"


def test_attempts_that_mlflow_never_saw_leave_no_runs(start_record: StartRecord, uri: str):
    """Of three attempts, MLflow got the first and the last; it never saw the second."""
    files = start_record(uri)
    append(files, (1, 1.0))
    upload(files)
    first = load(MlflowRunRef, files.mlflow_run)
    for _ in range(2):
        reset_record(files)
        start_record(uri)
        append(files, (1, 2.0))
    upload(files)
    experiment = ensure_experiment(uri, "test")
    runs = connect(uri).search_runs([experiment])
    assert sorted(run.info.status for run in runs) == ["KILLED", "RUNNING"]
    assert connect(uri).get_run(first.run_id).info.status == "KILLED"


def test_run_created_just_before_a_kill_is_found_by_its_key(start_record: StartRecord, uri: str):
    files = start_record(uri)
    append(files, (1, 1.0))
    upload(files)
    created = load(MlflowRunRef, files.mlflow_run)
    save(MlflowRunRef(created.uri, created.experiment, created.key), files.mlflow_run)
    upload(files)
    assert load(MlflowRunRef, files.mlflow_run) == created
    experiment = ensure_experiment(uri, "test")
    runs = connect(uri).search_runs([experiment], f"tags.`{KEY_TAG}` = '{created.key}'")
    assert len(runs) == 1


def test_resumed_run_keeps_parameters_and_adds_new_ones(start_record: StartRecord, uri: str):
    files = start_record(uri, params={"seed": 0})
    upload(files)
    start_record(uri, params={"seed": 1, "new": 2})
    append(files, (1, 1.0))
    upload(files)
    run = connect(uri).get_run(run_id(files))
    assert run.data.params == {"seed": "0", "new": "2"}
    assert history(files, uri, "a") == [(1, 1.0)]


def test_upload_to_a_store_that_lost_the_run_sends_everything(
    start_record: StartRecord, uri: str, fresh_database: Path, tmp_path: Path
):
    files = start_record(uri)
    append(files, (1, 1.0))
    upload(files)
    shutil.copy(fresh_database, tmp_path / "other.db")
    mlflow_run = load(MlflowRunRef, files.mlflow_run)
    mlflow_run.uri = f"sqlite:///{tmp_path}/other.db"  # the same run, in an empty store
    save(mlflow_run, files.mlflow_run)
    files = start_record(mlflow_run.uri)
    append(files, (2, 2.0))
    upload(files)
    assert history(files, mlflow_run.uri, "a") == [(1, 1.0), (2, 2.0)]


class DenyAccess(BaseHTTPRequestHandler):
    """Answers 401 to every request, and stores the Authorization headers."""

    headers_received: ClassVar[set[str | None]] = set()

    def do_GET(self) -> None:
        self.headers_received.add(self.headers["Authorization"])
        self.send_error(401)

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("variables", "header"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "sesame"}, "Bearer sesame"),
        (
            {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "sesame"},
            "Basic bWU6c2VzYW1l",
        ),
        ({"MLFLOW_TRACKING_URI": "http://me:sesame@127.0.0.1:PORT"}, "Basic bWU6c2VzYW1l"),
    ],
    ids=["token", "name and password", "in the address"],
)
def test_credentials_are_sent_to_the_server_and_appear_in_no_message(
    start_record: StartRecord,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    header: str,
):
    with ThreadingHTTPServer(("127.0.0.1", 0), DenyAccess) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        DenyAccess.headers_received.clear()
        for name, value in variables.items():
            monkeypatch.setenv(name, value.replace("PORT", str(server.server_port)))
        address = f"http://127.0.0.1:{server.server_port}"
        has_user = "MLFLOW_TRACKING_URI" in variables
        files = start_record(address.replace("//", "//me:***@") if has_user else address)
        append(files, (1, 1.0))
        with pytest.raises(TrackingError) as caught:
            upload(files)
        server.shutdown()
    assert DenyAccess.headers_received == {header}
    message = str(caught.value)
    assert_names(message, "HTTP 401", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN")
    texts = [message, *(p.read_text() for p in files.folder.rglob("*") if p.is_file())]
    assert not any("sesame" in text for text in texts)


def test_artifacts_are_uploaded_and_a_missing_one_is_reported(
    start_record: StartRecord, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = start_record(uri)
    (files.folder / "video").mkdir()
    (files.folder / "video" / "last.gif").write_text("gif")
    (files.folder / "config.yaml").write_text("seed: 0")
    lines = [
        '{"path": "config.yaml", "folder": null}',
        '{"path": "gone.txt", "folder": null}',
        '{"path": "video", "folder": "media"}',
        '{"path": "incomplete',
    ]
    files.artifacts.write_text("\n".join(lines))
    upload(files)
    assert_names(capsys.readouterr().err, files.folder / "gone.txt")
    root = tmp_path / "mlartifacts" / run_id(files) / "artifacts"
    assert (root / "config.yaml").read_text() == "seed: 0"
    assert (root / "media" / "last.gif").read_text() == "gif"
    assert load(UploadCursor, files.upload_cursor).artifact_lines == 3


def test_sync_to_another_store_uploads_every_record_once(
    start_record: StartRecord, uri: str, dead_uri: str
):
    files = start_record(dead_uri, status="FINISHED", ended=2000.0, started=1000.0)
    append(files, *[(step, step / 2) for step in range(100)])
    with pytest.raises(TrackingError, match="unreachable"):
        sync(files.folder)
    assert sync(files.folder, uri) == 100
    assert sync(files.folder) == 0  # the run now belongs to that store
    assert history(files, uri, "a") == [(step, step / 2) for step in range(100)]
    info = connect(uri).get_run(run_id(files)).info
    assert (info.status, info.start_time, info.end_time) == ("FINISHED", 1_000_000, 2_000_000)


def test_sync_marks_a_run_without_an_end_as_killed(start_record: StartRecord, uri: str):
    files = start_record(uri)
    append(files, (1, 1.0))
    sync(files.folder)
    assert connect(uri).get_run(run_id(files)).info.status == "KILLED"
