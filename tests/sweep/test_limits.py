"""Constraints on the cost of a trial, and the budget of a study in hours and FLOPs."""

import json
import sys

import optuna
import pytest
from optuna.trial import TrialState
from refusals import refused

from llmdreamer.config import from_yaml, to_yaml
from llmdreamer.sweep.results_table import print_results
from llmdreamer.sweep.run_source import RunOutcome
from llmdreamer.sweep.studies import budget, constraints
from llmdreamer.sweep.studies.budget import TimeSpent
from llmdreamer.sweep.studies.study import Study
from llmdreamer.training import measure
from llmdreamer.utils.errors import ConfigError

STUDY = ["hydra.sweeper.study_name=s", "algo.horizon=3,4,5,6"]


def trials_of(tmp_path):
    url = f"sqlite:///{tmp_path}/outputs/sweeps/s/study.db"
    return optuna.load_study(study_name="s", storage=url).trials


def end(study, task, flops=0.0):
    curves = {"eval/return": [(10, 1.0)], "compute/flops": [(10, flops)]}
    study.record_outcome(task, RunOutcome("finished", curves, 10))


# --- constraints ---


@pytest.fixture
def costs(monkeypatch):
    """Replace the measurement: parameters are a million times the horizon."""
    measured = []

    def measure_costs(config, names):
        measured.append(config.algo.horizon)
        costs = {"parameters": 1e6 * config.algo.horizon, "flops": 1e9, "memory": 1e3}
        return {name: costs[name] for name in names}

    monkeypatch.setattr(constraints, "measure_costs", measure_costs)
    return measured


def test_trial_above_a_limit_is_refused_without_a_run(make_plan, tmp_path, costs, capsys):
    limits = "hydra.sweeper.constraints={parameters:4.5e6,flops:1e9}"
    for plan in make_plan(*STUDY, limits, "hydra.sweeper.n_trials=4"):
        study, started = Study(plan), []
        while not study.is_done():
            if (task := study.next_task()) is not None:
                started.append(task.label.split("=")[1])
                end(study, task)
        study.close()
        print_results(plan, study.rows)
    assert sorted(started) == ["3", "4"] and sorted(costs) == [3, 4, 5, 6]
    assert sorted(path.name for path in tmp_path.glob("outputs/sweeps/s/[0-9]*")) == []
    for trial in trials_of(tmp_path):
        horizon = trial.params["algo.horizon"]
        refusal = trial.state is TrialState.PRUNED
        assert refusal == (horizon > 4)
        assert trial.constraints["parameters"] == pytest.approx(horizon / 4.5 - 1)
        assert trial.constraints["flops"] == 0
        if refusal:
            assert trial.user_attrs["cause"] == f"parameters {horizon}e+06 > 4.5e+06"
    assert "parameters 5e+06 > 4.5e+06" in capsys.readouterr().out


def test_trial_taken_over_is_not_measured_again(make_plan, costs):
    command = [*STUDY, "hydra.sweeper.n_trials=1", "hydra.sweeper.constraints={parameters:9e9}"]
    for _ in range(2):
        for plan in make_plan(*command):
            study = Study(plan)
            assert study.next_task() is not None
            study.close()
    assert len(costs) == 1


def test_trial_that_cannot_be_measured_fails_with_the_cause(make_plan, tmp_path, monkeypatch):
    def fail(config, names):
        raise constraints.NotMeasured("its cost was not measured: no such environment")

    monkeypatch.setattr(constraints, "measure_costs", fail)
    limits = "hydra.sweeper.constraints={memory:1e9}"
    for plan in make_plan(*STUDY, limits, "hydra.sweeper.n_trials=1"):
        study = Study(plan)
        assert study.next_task() is None and study.is_done()
        study.close()
    (trial,) = trials_of(tmp_path)
    assert trial.state is TrialState.FAIL and "no such environment" in trial.user_attrs["cause"]


@pytest.mark.parametrize("limit", ["flops=0", "flops=-1", "memory=inf", "parameters=nan"])
def test_invalid_constraint_is_refused(make_plan, limit):
    command = [*STUDY, "hydra.sweeper.n_trials=1", f"hydra.sweeper.constraints.{limit}"]
    with refused(ConfigError, "hydra.sweeper.constraints", limit.partition("=")[2]):
        next(make_plan(*command))


def small_run(make_plan):
    for plan in make_plan(
        "model=XS", "algo.horizon=2,3", "algo.total_steps=48", "algo.learning_starts=16",
        "algo.per_rank_sequence_length=8", "algo.per_rank_batch_size=2", "algo.imag_starts=2",
        "replay_ratio=0.25", "threads=1",
    ):  # fmt: skip
        return plan.compose([*plan.fixed, "algo.horizon=2"])


def test_measured_costs_are_those_of_the_trained_run(make_plan, tmp_path):
    from llmdreamer.training.trainer import Trainer

    config = small_run(make_plan)
    costs = measure.measure(config, ["parameters", "flops", "memory"], tmp_path / "measured")
    trainer = Trainer(config, tmp_path / "run")
    while trainer.policy_step < config.algo.total_steps:
        trainer.collect_step()
        for _ in trainer.train_updates():
            pass
    trainer.close()
    assert costs["parameters"] == trainer.counts()["parameters/total"] > 0
    assert costs["flops"] == pytest.approx(trainer.flops_per_update * trainer.updates)
    assert costs["memory"] > 1e7


def test_process_that_measures_prints_the_costs(make_plan, tmp_path, monkeypatch, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(small_run(make_plan)))
    measure.main([str(path), "parameters", ""])
    costs = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert costs.keys() == {"parameters"} and costs["parameters"] > 1e4
    # A process that ends with an error gives its last line.
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(constraints.NotMeasured, match="exit code 1"):
        constraints.measure_costs(from_yaml(path), ["parameters"])


# --- budgets ---


class Clock:
    """A monotonic clock and a wall clock. Only the wall clock runs in a pause."""

    def __init__(self):
        self.run, self.wall = 0.0, 1e9

    def advance(self, seconds):
        self.run, self.wall = self.run + seconds, self.wall + seconds

    def pause(self, seconds):
        self.wall += seconds

    def spent(self, study):
        return TimeSpent(study, lambda: self.run, lambda: self.wall)


def test_time_of_drivers_is_added_up_without_pauses():
    study, clock = optuna.create_study(), Clock()
    for _ in range(3):
        driver = clock.spent(study)
        for _ in range(4):
            clock.advance(100)
            driver.count()
        clock.pause(1e6)
    assert driver.seconds == pytest.approx(1200)


def test_time_of_two_drivers_at_once_counts_once():
    study, clock = optuna.create_study(), Clock()
    drivers = [clock.spent(study), clock.spent(study)]
    for _ in range(5):
        for driver in drivers:
            clock.advance(10)
            driver.count()
    assert drivers[-1].seconds == pytest.approx(100)


def test_clock_that_is_set_back_loses_no_time():
    study, clock = optuna.create_study(), Clock()
    driver = clock.spent(study)
    clock.advance(100)
    driver.count()
    clock.pause(-1e5)
    clock.advance(100)
    assert driver.count() == pytest.approx(200)


@pytest.mark.parametrize("stored", [3, "x", {"seconds": "x"}, {"seconds": None, "until": []}])
def test_stored_time_of_another_type_counts_as_none(stored):
    study, clock = optuna.create_study(), Clock()
    study.set_user_attr("time", stored)
    driver = clock.spent(study)
    clock.advance(5)
    assert driver.count() == pytest.approx(5)


def test_study_starts_no_trial_after_its_hours(make_plan, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "TimeSpent", clock.spent)
    started = 0
    for _ in range(3):  # three commands with a long pause after each
        for plan in make_plan(*STUDY, "hydra.sweeper.n_trials=4", "hydra.sweeper.max_hours=0.05"):
            study = Study(plan)
            if (task := study.next_task()) is not None:
                started += 1
                clock.advance(100)
                study.should_stop(task, {})
                end(study, task)
            is_done = study.is_done()
            total = study.total
            study.close()
            clock.pause(1e6)
    assert (started, is_done, total) == (2, True, 2)
    assert len(trials_of(tmp_path)) == 2


def test_started_trial_is_finished_after_the_hours(make_plan, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(budget, "TimeSpent", clock.spent)
    command = [*STUDY, "hydra.sweeper.n_trials=4", "hydra.sweeper.max_hours=0.01"]
    for plan in make_plan(*command):
        study = Study(plan)
        task = study.next_task()
        clock.advance(100)
        study.should_stop(task, {})
        study.close()
    for plan in make_plan(*command):
        study = Study(plan)
        assert study.next_task().label == task.label
        study.close()


def test_study_starts_no_trial_after_its_flops(make_plan, tmp_path):
    command = [*STUDY, "hydra.sweeper.n_trials=4", "hydra.sweeper.max_flops=2.5e9"]
    for started in (True, True, True, False):  # four commands, of one trial each
        for plan in make_plan(*command):
            study = Study(plan)
            task = study.next_task()
            assert (task is not None) == started
            if task is not None:
                end(study, task, 1e9)
            study.close()
    assert study.is_done()
    assert [trial.user_attrs["flops"] for trial in trials_of(tmp_path)] == [1e9] * 3


def test_flops_of_a_running_trial_count(make_plan):
    for plan in make_plan(*STUDY, "hydra.sweeper.n_trials=4", "hydra.sweeper.max_flops=1e9"):
        study = Study(plan)
        task = study.next_task()
        study.should_stop(task, {"compute/flops": [(5, 1e8), (10, 1e9)]})
        assert study.next_task() is None
        study.close()


@pytest.mark.parametrize(
    "setting", ["max_hours=0", "max_flops=-1", "max_hours=inf", "max_flops=nan"]
)
def test_invalid_budget_is_refused(make_plan, setting):
    with refused(
        ConfigError, "hydra.sweeper", setting.partition("=")[0], setting.partition("=")[2]
    ):
        next(make_plan(*STUDY, "hydra.sweeper.n_trials=4", f"hydra.sweeper.{setting}"))
