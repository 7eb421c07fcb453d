"""Loaded data equals what the runs wrote, read directly from their spools."""

import sqlite3
from pathlib import Path

import alembic.command
import numpy as np
import pytest
import sqlalchemy
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base
from recorded import EXPERIMENT, KEPT_RECORDS, Recorded

from llmdreamer.analysis.load import RETURN, Records, current_points, load
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.read import Points, _read_server, _require, read_experiment
from llmdreamer.tracking.store import connect


def loaded_curve(records: Records, run_id: str, key: str) -> list[tuple[int, float]]:
    rows = records.curves[(records.curves["run_id"] == run_id) & (records.curves["key"] == key)]
    return list(zip(rows["env_step"], rows["value"], strict=True))


def test_loaded_curves_equal_the_runs_spools(recorded: Recorded, records: Records):
    ended = ["failed", "killed", "stopped", "pruned", "running", "repeated"]
    names = set(recorded.folders) - {*ended, "resumed"}
    assert len(records.runs) == len(names) + 1
    for name in names:
        for key in {key for row in recorded.records(name) for key in row["metrics"]}:
            loaded = loaded_curve(records, recorded.run_id(name), key)
            assert loaded == recorded.curve(name, key), (name, key)


def test_repeated_steps_of_a_resumed_run_are_loaded_once(recorded: Recorded, records: Records):
    run_id = recorded.run_id("resumed")
    with sqlite3.connect(recorded.uri.removeprefix("sqlite:///")) as database:
        query = "SELECT count(*), count(DISTINCT step) FROM metrics WHERE run_uuid=? AND key=?"
        for key in (RETURN, "world_model/loss"):  # logged at steps that the schedule fixes
            stored, steps = database.execute(query, (run_id, key)).fetchone()
            assert stored > steps
            assert loaded_curve(records, run_id, key) == recorded.curve("resumed", key)


def test_discarded_episodes_remain_only_between_checkpoint_and_next_episode(
    recorded: Recorded, records: Records
):
    """Episodes have no fixed steps, so those of the discarded attempt remain up to the next episode."""
    loaded = loaded_curve(records, recorded.run_id("resumed"), "episode/return")
    expected = recorded.curve("resumed", "episode/return")
    checkpoint = recorded.records("resumed")[KEPT_RECORDS - 1]["env_step"]
    first = min(step for step, _ in expected if step > checkpoint)
    extra = set(loaded) - set(expected)
    assert set(expected) <= set(loaded)
    assert all(checkpoint < step < first for step, _ in extra)


def test_seconds_count_from_the_start_of_the_run(recorded: Recorded, records: Records):
    name = "small_gpt2_2"
    rows = records.curves[records.curves["run_id"] == recorded.run_id(name)]
    evaluations = rows[rows["key"] == RETURN]["seconds"].to_numpy()
    started = records.runs.set_index("run_id").loc[recorded.run_id(name), "started"]
    times = [row["time"] for row in recorded.records(name) if RETURN in row["metrics"]]
    np.testing.assert_allclose(evaluations, np.array(times) - started, atol=0.002)


def test_unfinished_runs_are_left_out_with_a_note(recorded: Recorded, records: Records):
    assert set(records.runs["status"]) == {"FINISHED"}
    for name in ("failed", "killed", "stopped", "pruned", "running"):
        assert recorded.run_id(name) not in set(records.runs["run_id"])
    assert records.notes[0] == ("5 runs of 16 left out: 1 FAILED, 2 KILLED, 1 PRUNED, 1 RUNNING.")


def test_statuses_select_unfinished_runs(recorded: Recorded):
    records = load(recorded.uri, EXPERIMENT, [RETURN], statuses=("FAILED",))
    assert list(records.runs["run_id"]) == [recorded.run_id("failed")]


def test_repeated_run_replaces_the_older_one(recorded: Recorded, records: Records):
    assert recorded.run_id("repeated") not in set(records.runs["run_id"])
    assert recorded.run_id("small_gpt2_0") in set(records.runs["run_id"])
    assert any("same configuration and seed" in note for note in records.notes)


def test_parent_run_is_excluded_and_selects_its_jobs(recorded: Recorded, records: Records):
    assert recorded.parent not in set(records.runs["run_id"])
    jobs = load(recorded.uri, EXPERIMENT, [], parent=recorded.parent)
    names = [name for name in recorded.folders if name.startswith("small")]
    assert set(jobs.runs["run_id"]) == {recorded.run_id(name) for name in names}


def test_keys_select_the_metrics_to_load(recorded: Recorded):
    assert set(load(recorded.uri, EXPERIMENT, [RETURN]).curves["key"]) == {RETURN}


def test_pause_before_a_resume_is_no_wall_time(recorded: Recorded, records: Records):
    """The run was resumed an hour after its first attempt, whose records come again."""
    row = records.curves["run_id"] == recorded.run_id("resumed")
    original = records.curves["run_id"] == recorded.run_id("small_gru_0")
    seconds = [records.curves.loc[rows, "seconds"].max() for rows in (row, original)]
    assert seconds[0] == pytest.approx(seconds[1], abs=2)


def test_later_value_at_a_smaller_step_discards_earlier_ones():
    rows = [
        ("a", "x", 1, 10, 0.1),
        ("a", "x", 2, 20, 0.2),
        ("a", "x", 3, 30, 0.3),
        ("a", "x", 2, 40, 0.22),
        ("a", "x", 4, 50, 0.4),
        ("a", "y", 1, 60, 7.0),
        ("b", "x", 9, 0, 8.0),
    ]
    points = Points.from_records([(*row, False) for row in rows])
    frame = current_points(points)
    assert frame[["run_id", "key", "env_step", "value"]].values.tolist() == [
        ["a", "x", 1, 0.1],
        ["a", "x", 2, 0.22],
        ["a", "x", 4, 0.4],
        ["a", "y", 1, 7.0],
        ["b", "x", 9, 8.0],
    ]


def test_missing_store_is_a_note_and_is_not_created(tmp_path: Path):
    path = tmp_path / "mlflow.db"
    records = load(f"sqlite:///{path}")
    assert records.notes == [
        f"there is no store at {path}: train a run first, or give another path"
    ]
    assert not path.exists()


def test_unknown_experiment_lists_existing_ones(recorded: Recorded):
    (note,) = load(recorded.uri, "other").notes
    assert "no experiment 'other'" in note and EXPERIMENT in note


def test_missing_experiment_error_hides_the_password():
    with pytest.raises(
        TrackingError, match=r"^postgresql://me:\*\*\*@host/db has no experiment 'x'"
    ):
        _require("x", [], "postgresql://me:sesame@host/db")


def test_empty_store_is_a_note(empty_store: str):
    (note,) = load(empty_store).notes
    assert note.endswith("has no experiment 'llmdreamer'; it has: none")


def test_file_that_is_not_a_store_is_a_note(tmp_path: Path):
    text = tmp_path / "text.db"
    text.write_text("not a database, but long enough to be read as one" * 30)
    (note,) = load(f"sqlite:///{text}").notes
    assert "cannot be read as an MLflow store" in note
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE trials (id)")
    (note,) = load(f"sqlite:///{tmp_path}/other.db").notes
    assert "is not an MLflow store: it has no table" in note


def test_store_of_another_mlflow_version_is_read_and_not_changed(copy: Path, records: Records):
    """MLflow's own client would migrate it, or refuse to open it."""
    with sqlite3.connect(copy) as database:
        database.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
        database.execute("DROP TABLE webhooks")
    before = copy.read_bytes()
    other = load(f"sqlite:///{copy}", EXPERIMENT)
    assert len(other.runs) == len(records.runs) and len(other.curves) == len(records.curves)
    assert copy.read_bytes() == before


TABLES = ("experiments", "runs", "params", "tags", "metrics")


@pytest.mark.parametrize("revision", ["181f10493468", "acf3f17fdcc7"], ids=["1.0", "2.12"])
def test_stores_of_old_mlflow_versions_are_read_and_not_changed(
    revision: str, copy: Path, records: Records, tmp_path: Path
):
    """The tables come from MLflow's migrations up to that version; the rows are copied from today's."""
    old = tmp_path / "old.db"
    Base.metadata.create_all(sqlalchemy.create_engine(f"sqlite:///{old}"))
    alembic.command.upgrade(_get_alembic_config(f"sqlite:///{old}"), revision)
    with sqlite3.connect(old) as database:
        database.execute("PRAGMA ignore_check_constraints = ON")  # MLflow 1.0 has no status KILLED
        database.execute("ATTACH ? AS today", (str(copy),))
        for table in TABLES:
            columns = [
                {row[1] for row in database.execute(f"PRAGMA {name}.table_info({table})")}
                for name in ("main", "today")
            ]
            names = ", ".join(sorted(columns[0] & columns[1]))
            database.execute(
                f"INSERT OR REPLACE INTO {table} ({names}) SELECT {names} FROM today.{table}"
            )
    before = old.read_bytes()
    old_records = load(f"sqlite:///{old}", EXPERIMENT)
    assert list(old_records.runs["run_id"]) == list(records.runs["run_id"])
    assert old_records.curves["value"].sum() == pytest.approx(records.curves["value"].sum())
    assert old_records.notes == records.notes
    assert old.read_bytes() == before


@pytest.mark.parametrize("uri", ["./mlruns", "ftp://x"])
def test_invalid_store_uri_is_a_note(uri: str):
    records = load(uri)
    assert records.runs.empty and len(records.notes) == 1


def test_nan_and_infinity_are_restored_from_sql():
    """MLflow stores NaN as a flag, and infinity as the largest double."""
    points = Points.from_records(
        [("a", "x", n, n, v, n == 0) for n, v in enumerate([0.0, 1.7976e308, -1.7976e308])]
    )
    assert np.isnan(points.value[0]) and list(points.value[1:]) == [np.inf, -np.inf]


def test_server_and_database_give_the_same_runs(recorded: Recorded):
    """MLflow's client reads the same database here, in the way it reads a server."""
    client = connect(recorded.uri)
    keys = [RETURN, "replay/updates"]
    from_server = _read_server(client, recorded.uri, EXPERIMENT, keys)
    from_database = read_experiment(recorded.uri, EXPERIMENT, keys)
    assert {run.run_id: run.params for run in from_server.runs} == {
        run.run_id: run.params for run in from_database.runs
    }
    frames = [current_points(stored.points) for stored in (from_server, from_database)]
    rows = [
        frame.astype({"run_id": str, "key": str})
        .sort_values(["run_id", "key", "env_step"])
        .reset_index(drop=True)
        for frame in frames
    ]
    assert rows[0].equals(rows[1])
