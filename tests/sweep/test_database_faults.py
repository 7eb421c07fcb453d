"""Faults of a study's database in mid-sweep, and trials that another driver has taken over and ended."""

import json
import logging
import sqlite3
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from refusals import refused
from sweep_helpers import FAKE_RUN, checkpoints, is_gone, read_starts

from llmdreamer.cli.explain import explain
from llmdreamer.sweep.launchers.base import LocalLauncher
from llmdreamer.sweep.pool import Pool
from llmdreamer.sweep.progress import ProgressReporter
from llmdreamer.sweep.run_source import RunOutcome, RunTask
from llmdreamer.sweep.studies import retries, storage
from llmdreamer.sweep.studies.retries import StorageLost
from llmdreamer.sweep.studies.study import Study
from llmdreamer.sweep.worker import Slot, WorkerOptions
from llmdreamer.utils.errors import ConfigError


@pytest.fixture
def short_limits(monkeypatch):
    monkeypatch.setattr(retries, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(retries, "FAULT_SECONDS", 0.3)
    monkeypatch.setattr(retries, "OUTAGE_SECONDS", 1.0)
    monkeypatch.setattr(retries, "OPENING_SECONDS", 0.3)
    monkeypatch.setattr(storage, "SQLITE_WAIT_SECONDS", 0)


@pytest.fixture
def plan(study_plan, tmp_path):
    return replace(study_plan, folder=tmp_path / "outputs" / "sweeps" / "s")


@pytest.fixture
def study(plan, short_limits):
    study = Study(plan)
    yield study
    study.close()


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "sweeps" / "s" / "study.db"


def finish(study: Study, task: RunTask) -> None:
    study.record_outcome(task, RunOutcome("finished", {"eval/return": [(8, 2.0)]}, 8))


def states(database: Path) -> list[TrialState]:
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{database}")
    return [trial.state for trial in stored.trials]


def execute(database: Path, statement: str) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)


FAULTS = {
    "removed": Path.unlink,
    "truncated": lambda path: path.write_bytes(b""),
    "not a database": lambda path: path.write_bytes(b"x" * 4096),
    "newer schema": lambda path: execute(path, "ALTER TABLE trials RENAME TO runs"),
    "study deleted": lambda path: execute(path, "DELETE FROM trials"),
    "damaged attribute": lambda path: execute(
        path, "UPDATE trial_user_attributes SET value_json = '{'"
    ),
    "damaged space": lambda path: execute(path, "UPDATE trial_params SET distribution_json = '3'"),
    "unknown state": lambda path: execute(path, "UPDATE trials SET state = 'LOST'"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_damaged_database_ends_the_sweep_with_one_line(study, database, fault):
    task = study.next_task()
    rows = [(row.number, row.state) for row in study.rows]
    fault(database)
    with refused(StorageLost, database, "same command") as caught:
        finish(study, task)
        study.next_task()
    assert explain(caught.value, task=lambda: None).exit_code == 1
    started_at = time.monotonic()
    assert [(row.number, row.state) for row in study.rows] == rows  # the last that were read
    with pytest.raises(StorageLost):
        study.next_task()
    assert time.monotonic() - started_at < 0.2  # no second wait


@pytest.fixture
def remove_for_a_moment(database, monkeypatch):
    """Remove the file; put it back when the driver waits, if no other one has been created meanwhile."""
    aside = database.with_name("aside.db")

    def put_back(_: float) -> None:
        assert not database.exists()
        aside.rename(database)

    def remove() -> None:
        database.rename(aside)
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=put_back)
        monkeypatch.setattr(retries, "time", clock)

    return remove


def test_removed_database_is_not_created_empty_and_works_when_put_back(
    study, database, remove_for_a_moment, caplog
):
    finish(study, study.next_task())
    remove_for_a_moment()
    finish(study, study.next_task())
    assert states(database) == [TrialState.COMPLETE] * 2
    assert [line for line in caplog.messages if "database failed" in line]


def test_locked_database_is_waited_for(study, database):
    task = study.next_task()
    with closing(sqlite3.connect(database, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(0.5, other.rollback)  # longer than the limit of other faults
        timer.start()
        finish(study, task)
        timer.join()
    assert states(database) == [TrialState.COMPLETE]


def test_database_that_stays_locked_ends_the_sweep_sooner_after_ctrl_c(
    study, database, monkeypatch
):
    task = study.next_task()
    monkeypatch.setattr(retries, "OUTAGE_SECONDS", 60.0)
    monkeypatch.setattr(retries, "INTERRUPTED_SECONDS", 0.2)
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN EXCLUSIVE")
        threading.Timer(0.2, study.interrupt).start()
        with refused(StorageLost, database, "locked"):
            finish(study, task)


def test_trial_made_while_the_database_failed_is_not_lost(
    study, database, remove_for_a_moment, monkeypatch
):
    """The trial is in the database, and the driver does not know: it must not make another one."""
    claim, claimed = study._claim, []

    def fail_once(trial):
        claimed.append(trial)
        if len(claimed) == 1:
            remove_for_a_moment()
        return claim(trial)

    monkeypatch.setattr(study, "_claim", fail_once)
    while (task := study.next_task()) is not None:
        finish(study, task)
    assert len(claimed) == 4 and states(database) == [TrialState.COMPLETE] * 3


def test_lost_database_stops_the_runs_with_checkpoints(
    plan, short_limits, database, tmp_path, monkeypatch
):
    monkeypatch.setenv("FAKE_RUN_STEP_SECONDS", "0.1")
    monkeypatch.setenv("FAKE_RUN_STEPS", "1000")
    folder = database.parent
    plan = replace(plan, settings=replace(plan.settings, pruner="median"))
    study = Study(plan)
    options = WorkerOptions(
        [sys.executable, str(FAKE_RUN)], LocalLauncher(), [], "eval/return", False, 3, 60
    )

    def remove_once_both_train() -> None:
        while not all(checkpoints(folder / str(number)) for number in (0, 1)):
            time.sleep(0.05)
        database.unlink()  # the driver writes next when it reports a value to the pruner

    threading.Thread(target=remove_once_both_train, daemon=True).start()
    reporter = ProgressReporter(plan, study)
    with refused(StorageLost, database, "was removed"):
        Pool([Slot(None, 1)] * 2, options).run(study, reporter)
    for number in (0, 1):
        assert checkpoints(folder / str(number))
        assert all(is_gone(start[1]) for start in read_starts(folder / str(number)))


@pytest.mark.parametrize(
    "value",
    ["null", "[]", "3", '"text"', "{}", '{"space": 1, "value": {}, "fixed": {}}',
     '{"space": {}, "value": {"objective": 3, "seeds": []}, "fixed": {}}', "{"],
)  # fmt: skip
def test_study_with_a_damaged_signature_is_refused(plan, short_limits, database, value):
    Study(plan).close()
    execute(database, f"UPDATE study_user_attributes SET value_json = '{value}'")
    with refused(ConfigError, "hydra.sweeper."):
        Study(plan)


def test_database_of_a_newer_optuna_is_refused_at_the_start(plan, short_limits, database):
    Study(plan).close()
    execute(database, "UPDATE alembic_version SET version_num = 'v99.0.0'")
    with refused(ConfigError, database, "optuna"):
        Study(plan)


def test_trial_that_another_driver_has_ended_does_not_end_the_sweep(study, database, caplog):
    """A driver was stopped for a while. Another one took its first trial over and ended it."""
    first, second = study.next_task(), study.next_task()
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{database}")
    stored.tell(0, 5.0)
    with caplog.at_level(logging.INFO, "llmdreamer"):
        finish(study, first)
    finish(study, second)
    trials = optuna.load_study(study_name="s", storage=f"sqlite:///{database}").trials
    assert [trial.value for trial in trials] == [5.0, 2.0]
    assert [line for line in caplog.messages if "trial 0" in line]
    assert study.next_task().key == (2, 0)


def test_pruned_trial_of_another_driver_stops_its_run_here(plan, short_limits, database):
    study = Study(replace(plan, settings=replace(plan.settings, pruner="median")))
    task = study.next_task()
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{database}")
    stored.tell(0, state=TrialState.PRUNED)
    assert study.should_stop(task, {"eval/return": [(8, 1.0)]})
    study.record_outcome(task, RunOutcome("stopped", {"eval/return": [(8, 1.0)]}, 8))
    assert study.next_task().key == (1, 0)
    study.close()


def test_wrong_types_in_the_attributes_of_a_trial_are_not_shown(study, database):
    finish(study, study.next_task())
    stored = optuna.load_study(study_name="s", storage=f"sqlite:///{database}")
    trial_id = stored.trials[0]._trial_id
    for name, value in {"env_step": "8", "cause": [1], "exit_code": None}.items():
        text = json.dumps(value)
        execute(
            database,
            "INSERT OR REPLACE INTO trial_user_attributes (trial_id, key, value_json)"
            f" VALUES ({trial_id}, '{name}', '{text}')",
        )
    study._storage.optuna._studies.clear()  # what the driver has read before
    (row,) = study.rows
    assert (row.env_step, row.cause, row.exit_code) == (0, "", 0)
