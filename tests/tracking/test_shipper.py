"""The laws of uploading, in this process, against real SQLite stores."""

import math
import shutil
import sqlite3
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from llmdreamer.tracking.record import Known, RunFiles, Shipped, load, save
from llmdreamer.tracking.shipper import KEY_TAG, Shipper, begin_anew, cut
from llmdreamer.tracking.spool import Spool
from llmdreamer.tracking.store import TrackingError, connect, prepare
from llmdreamer.tracking.uploads import sync

Describe = Callable[..., RunFiles]


def told(files: RunFiles, uri: str, key: str) -> list[tuple[int, float]]:
    """What MLflow holds: (step, value), in the order of steps."""
    known = load(Known, files.known)
    assert known is not None
    assert known.run_id is not None
    history = connect(uri).get_metric_history(known.run_id, key)
    return sorted((metric.step, metric.value) for metric in history)


def ship(files: RunFiles) -> Shipper:
    shipper = Shipper(files.folder)
    shipper.ship()
    return shipper


def append(files: RunFiles, *rows: tuple[int, float]) -> int:
    """Rows of a single metric `a`; returns the offset after them."""
    spool = Spool(files.metrics)
    for step, value in rows:
        spool.append({"a": value}, step)
    return spool.offset()


def test_what_the_spool_holds_is_what_mlflow_holds(described: Describe, uri: str):
    files = described(uri)
    spool = Spool(files.metrics)
    for step in range(30):
        # More metrics than one call may carry, and names that MLflow refuses.
        spool.append({f"m[{k}]": step + k / 100 for k in range(50)}, step)
    shipper = ship(files)
    assert shipper.rows == 30
    for k in (0, 49):
        assert told(files, uri, f"m_{k}_") == [(step, step + k / 100) for step in range(30)]


def test_a_row_of_more_metrics_than_a_call_may_carry_arrives_whole(described: Describe, uri: str):
    files = described(uri)
    Spool(files.metrics).append({f"m{k}": float(k) for k in range(2500)}, 1)
    ship(files)
    run = connect(uri).get_run(load(Known, files.known).run_id)
    assert run.data.metrics == {f"m{k}": float(k) for k in range(2500)}


def test_nan_and_infinity_arrive(described: Describe, uri: str):
    files = described(uri)
    append(files, (1, math.nan), (2, math.inf))
    ship(files)
    (_, first), (_, second) = told(files, uri, "a")
    assert math.isnan(first)
    assert second > 1e308  # MLflow's spelling of infinity in a database


def test_the_run_is_described(described: Describe, uri: str):
    params = {f"p{k}": k for k in range(150)} | {"long": "x" * 7000}
    files = described(uri, params=params, tags={"arm": "scratch", "mlflow.parentRunId": "abc"})
    ship(files)
    run = connect(uri).get_run(load(Known, files.known).run_id)
    assert run.info.run_name == "run"
    assert run.info.status == "RUNNING"
    assert len(run.data.params) == 151
    assert run.data.params["long"].endswith("[cut: 7000 characters in all]")
    assert run.data.tags["mlflow.parentRunId"] == "abc"


def test_a_locked_store_loses_nothing_and_is_told_once(described: Describe, uri: str):
    files = described(uri)
    append(files, (0, 0.0))
    shipper = ship(files)
    append(files, *((step, float(step)) for step in range(1, 50)))
    other = sqlite3.connect(uri.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(TrackingError, match="locked"):
        shipper.ship()
    other.close()
    shipper.ship()
    assert told(files, uri, "a") == [(step, float(step)) for step in range(50)]


def test_a_store_on_a_full_disk_loses_nothing_and_is_told_once(
    described: Describe, uri: str, disk: Callable[[str], Path]
):
    database = Path(uri.removeprefix("sqlite:///"))
    path = disk(f"size={database.stat().st_size + 2**18}") / "mlflow.db"
    shutil.copy(database, path)
    files = described(f"sqlite:///{path}")
    append(files, *((step, float(step)) for step in range(5000)))
    shipper = Shipper(files.folder)
    with pytest.raises(TrackingError, match="full"):
        shipper.ship()
    disk("size=64m")
    shipper.ship()
    assert told(files, f"sqlite:///{path}", "a") == [(step, float(step)) for step in range(5000)]


def test_a_kill_between_upload_and_noting_it_makes_no_duplicates(described: Describe, uri: str):
    files = described(uri)
    append(files, (1, 1.0), (2, math.nan))
    before = Shipper(files.folder)
    before.ship()
    # The files as that kill leaves them: the batch was announced, and not noted as done.
    shipped = load(Shipped, files.shipped)
    save(Shipped(shipped.key, offset=0, sending=shipped.sending), files.shipped)
    append(files, (3, 3.0))
    ship(files)
    assert [step for step, _ in told(files, uri, "a")] == [1, 2, 3]


@pytest.mark.parametrize("noted", [True, False])
def test_rows_done_again_after_a_resume_are_told_once(described: Describe, uri: str, noted: bool):
    files = described(uri)
    cursor = append(files, (1, 1.0))
    append(files, (2, 2.0), (3, 3.0))
    ship(files)
    append(files, (4, 4.0))  # not uploaded yet
    if not noted:
        shipped = load(Shipped, files.shipped)
        save(Shipped(shipped.key, offset=0, sending=shipped.sending), files.shipped)
    cut(files, cursor)
    # Steps 2 and 3 are done again; their values differ as timings do. Step 5 is new.
    append(files, (2, 2.1), (3, 3.1), (4, 4.1), (5, 5.1))
    ship(files)
    assert told(files, uri, "a") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.1), (5, 5.1)]


def test_a_second_resume_from_the_same_checkpoint_tells_rows_once_too(
    described: Describe, uri: str
):
    files = described(uri)
    cursor = append(files, (1, 1.0))
    for life in (0.0, 0.1, 0.2):
        cut(files, cursor)
        append(files, (2, 2 + life), (3, 3 + life))
        ship(files)
    assert told(files, uri, "a") == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_kill_while_cutting_leaves_what_the_next_cut_completes(described: Describe, uri: str):
    files = described(uri)
    cursor = append(files, (1, 1.0))
    end = append(files, (2, 2.0))
    ship(files)
    whole = files.metrics.read_bytes()
    cut(files, cursor)
    files.metrics.write_bytes(whole)  # as if killed before the last step of the cut
    cut(files, cursor)
    assert files.metrics.stat().st_size == cursor < end
    append(files, (2, 2.5))
    ship(files)
    assert told(files, uri, "a") == [(1, 1.0), (2, 2.0)]


@pytest.mark.parametrize("kept", range(4))
def test_a_kill_while_beginning_anew_leaves_what_the_next_start_completes(
    described: Describe, uri: str, monkeypatch: pytest.MonkeyPatch, kept: int
):
    files = described(uri)
    append(files, (1, 1.0))
    ship(files)
    old = load(Known, files.known)
    unlink, left = Path.unlink, [True] * kept

    def until_killed(path: Path, missing_ok: bool = False) -> None:
        left.pop()  # an IndexError is the kill
        unlink(path, missing_ok)

    with monkeypatch.context() as patched, pytest.raises(IndexError):
        patched.setattr(Path, "unlink", until_killed)
        begin_anew(files)
    begin_anew(files)
    described(uri, params={"seed": 1})
    append(files, (1, 1.5))
    ship(files)
    assert load(Known, files.known).run_id != old.run_id
    assert told(files, uri, "a") == [(1, 1.5)]
    assert connect(uri).get_run(old.run_id).info.status == "KILLED"


def test_lives_that_a_server_was_away_for_are_none_of_the_runs(described: Describe, uri: str):
    """Three lives; two begin anew; of the first MLflow has a run, of the second it never heard."""
    files = described(uri)
    append(files, (1, 1.0))
    ship(files)
    first = load(Known, files.known)
    for _ in range(2):
        begin_anew(files)
        described(uri)
        append(files, (1, 2.0))
    ship(files)
    experiment = prepare(uri, "test")
    runs = connect(uri).search_runs([experiment])
    assert sorted(run.info.status for run in runs) == ["KILLED", "RUNNING"]
    assert connect(uri).get_run(first.run_id).info.status == "KILLED"


def test_a_run_created_just_before_a_kill_is_found_again(described: Describe, uri: str):
    files = described(uri)
    append(files, (1, 1.0))
    ship(files)
    known = load(Known, files.known)
    save(Known(known.uri, known.experiment, known.key), files.known)
    ship(files)
    assert load(Known, files.known) == known
    experiment = prepare(uri, "test")
    found = connect(uri).search_runs([experiment], f"tags.`{KEY_TAG}` = '{known.key}'")
    assert len(found) == 1


def test_a_resumed_run_with_another_parameter_keeps_the_first_and_goes_on(
    described: Describe, uri: str
):
    files = described(uri, params={"seed": 0})
    ship(files)
    described(uri, params={"seed": 1, "new": 2})
    append(files, (1, 1.0))
    ship(files)
    run = connect(uri).get_run(load(Known, files.known).run_id)
    assert run.data.params == {"seed": "0", "new": "2"}
    assert told(files, uri, "a") == [(1, 1.0)]


def test_a_store_that_lost_the_run_is_told_the_whole_of_it(
    described: Describe, uri: str, fresh_database: Path, tmp_path: Path
):
    files = described(uri)
    append(files, (1, 1.0))
    ship(files)
    shutil.copy(fresh_database, tmp_path / "other.db")
    known = load(Known, files.known)
    known.uri = f"sqlite:///{tmp_path}/other.db"  # the same run, in an empty store
    save(known, files.known)
    files = described(known.uri)
    append(files, (2, 2.0))
    ship(files)
    assert told(files, known.uri, "a") == [(1, 1.0), (2, 2.0)]


class Doorkeeper(BaseHTTPRequestHandler):
    """Lets nobody in, and remembers what it was told."""

    told: ClassVar[set[str | None]] = set()

    def do_GET(self) -> None:
        self.told.add(self.headers["Authorization"])
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
def test_a_server_is_told_who_asks_and_no_message_tells_the_secret(
    described: Describe, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], header: str
):
    with ThreadingHTTPServer(("127.0.0.1", 0), Doorkeeper) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        Doorkeeper.told.clear()
        for name, value in variables.items():
            monkeypatch.setenv(name, value.replace("PORT", str(server.server_port)))
        asked = f"http://127.0.0.1:{server.server_port}"
        named = "MLFLOW_TRACKING_URI" in variables
        files = described(asked.replace("//", "//me:***@") if named else asked)
        append(files, (1, 1.0))
        with pytest.raises(TrackingError) as caught:
            ship(files)
        server.shutdown()
    assert Doorkeeper.told == {header}
    assert "does not let us in (HTTP 401): set MLFLOW_TRACKING_USERNAME" in str(caught.value)
    told = [str(caught.value), *(p.read_text() for p in files.folder.rglob("*") if p.is_file())]
    assert not any("sesame" in text for text in told)


def test_artifacts_are_uploaded_and_a_missing_one_holds_nothing_up(
    described: Describe, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = described(uri)
    (files.folder / "video").mkdir()
    (files.folder / "video" / "last.gif").write_text("gif")
    (files.folder / "config.yaml").write_text("seed: 0")
    lines = [
        '{"path": "config.yaml", "folder": null}',
        '{"path": "gone.txt", "folder": null}',
        '{"path": "video", "folder": "media"}',
        '{"path": "torn',
    ]
    files.artifacts.write_text("\n".join(lines))
    ship(files)
    assert "gone.txt is gone" in capsys.readouterr().err
    run_id = load(Known, files.known).run_id
    root = tmp_path / "mlartifacts" / run_id / "artifacts"
    assert (root / "config.yaml").read_text() == "seed: 0"
    assert (root / "media" / "last.gif").read_text() == "gif"
    assert load(Shipped, files.shipped).artifacts == 3


def test_sync_to_another_store_replays_all_rows_once(described: Describe, uri: str, dead_uri: str):
    files = described(dead_uri, status="FINISHED", ended=2000.0, started=1000.0)
    append(files, *[(step, step / 2) for step in range(100)])
    with pytest.raises(TrackingError, match="unreachable"):
        sync(files.folder)
    assert sync(files.folder, uri) == 100
    assert sync(files.folder) == 0  # the run now belongs to that store
    assert told(files, uri, "a") == [(step, step / 2) for step in range(100)]
    info = connect(uri).get_run(load(Known, files.known).run_id).info
    assert (info.status, info.start_time, info.end_time) == ("FINISHED", 1_000_000, 2_000_000)


def test_sync_marks_a_run_that_never_told_its_end(described: Describe, uri: str):
    files = described(uri)
    append(files, (1, 1.0))
    sync(files.folder)
    assert connect(uri).get_run(load(Known, files.known).run_id).info.status == "KILLED"
