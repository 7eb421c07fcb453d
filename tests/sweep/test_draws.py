"""Laws of the draws of a study: no repeated points, independent trials, the same draws after any stop."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from llmdreamer.sweep.run_source import RunOutcome
from llmdreamer.sweep.settings import SweeperSettings
from llmdreamer.sweep.studies import draws
from llmdreamer.sweep.studies.distributions import point_at, point_key, space_size
from llmdreamer.sweep.studies.draws import draw_params
from llmdreamer.sweep.studies.samplers import SAMPLERS, make_sampler
from llmdreamer.sweep.studies.study import Study

EVERY_SAMPLER = [*SAMPLERS, "grid"]
LR = FloatDistribution(1e-4, 1e-2, log=True)
FEW_VALUES = {
    "nothing or a number": {"imag_starts": CategoricalDistribution(["null", 2])},
    "lists": {"keys": CategoricalDistribution(["[1]", "[1,2]", "[]"])},
    "strings": {"model": CategoricalDistribution(["S", "M", "L"])},
    "integers on a logarithmic scale": {"horizon": IntDistribution(2, 5, log=True)},
    "steps": {"rate": FloatDistribution(0.1, 0.7, step=0.2)},
    "two keys": {"a": CategoricalDistribution([True, False]), "b": IntDistribution(1, 3)},
}


def plan_of(sampler, seed=0, **options):
    settings = SweeperSettings(sampler=sampler, sampler_options=options)
    return SimpleNamespace(settings=settings, seeds=[seed])


def quick_options(sampler):
    return {"n_startup_trials": 3} if sampler in ("tpe", "gp") else {}


class Killed(BaseException):
    pass


class KillingStorage(InMemoryStorage):
    """A storage whose process dies just before one of its writes."""

    def __init__(self):
        super().__init__()
        self.writes, self.dies_at = 0, math.inf

    def _count(self):
        self.writes += 1
        if self.writes == self.dies_at:
            raise Killed

    def create_new_trial(self, *args, **kwargs):
        self._count()
        return super().create_new_trial(*args, **kwargs)

    def set_trial_param(self, *args):
        self._count()
        super().set_trial_param(*args)

    def set_trial_system_attr(self, *args):
        self._count()
        super().set_trial_system_attr(*args)

    def set_study_system_attr(self, *args):
        self._count()
        super().set_study_system_attr(*args)

    def set_trial_state_values(self, *args, **kwargs):
        self._count()
        return super().set_trial_state_values(*args, **kwargs)


def run_driver(storage, plan, space, count):
    """Run trials one after another until there are `count`. A trial that was left is taken over first."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = optuna.create_study(study_name="s", storage=storage, load_if_exists=True)
        study.sampler = optuna.samplers.RandomSampler()
        while True:
            running = [t for t in study.trials if t.state is TrialState.RUNNING]
            if not running and len(study.trials) >= count:
                return [trial.params for trial in study.trials]
            trial = optuna.trial.Trial(study, running[0]._trial_id) if running else study.ask()
            assert draw_params(study, trial._trial_id, plan, space) is None
            params = study.trials[trial.number].params
            value = sum(point_key(space, params)) * 7 % 1.3
            study.tell(trial.number, value)


@pytest.mark.parametrize("sampler", EVERY_SAMPLER)
@pytest.mark.parametrize("space", FEW_VALUES.values(), ids=FEW_VALUES)
def test_no_parameters_are_drawn_twice(sampler, space):
    size = space_size(space)
    points = {point_key(space, point_at(space, index)) for index in range(size)}
    assert len(points) == size
    for seed in range(2):
        plan = plan_of(sampler, seed, **quick_options(sampler))
        drawn = run_driver(InMemoryStorage(), plan, space, size)
        assert {point_key(space, params) for params in drawn} == points


# Not `gp`: it maximizes a function whose two best points may be equal up to rounding.
@pytest.mark.parametrize("sampler", [name for name in EVERY_SAMPLER if name != "gp"])
def test_study_stopped_before_any_write_draws_what_an_unbroken_one_draws(sampler):
    space = FEW_VALUES["two keys"] | ({} if sampler == "grid" else {"lr": LR})
    plan, trials = plan_of(sampler, **quick_options(sampler)), 5
    unbroken = KillingStorage()
    expected = run_driver(unbroken, plan, space, trials)
    assert unbroken.writes >= 4 * trials
    for write in range(1, unbroken.writes + 1):
        storage = KillingStorage()
        storage.dies_at = write
        with pytest.raises(Killed):
            run_driver(storage, plan, space, trials)
        assert run_driver(storage, plan, space, trials) == expected, f"stopped at write {write}"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_first_draws_of_trials_are_independent(sampler):
    """The first number of each trial: uniform, without a trend from trial to trial, in every key."""
    space = {
        "lr": FloatDistribution(0.0, 1.0),
        "r": CategoricalDistribution([0, 1, 2, 3]),
        "n": IntDistribution(0, 7),
    }
    # Before any of these samplers learns from values.
    long = {"tpe": "n_startup_trials", "gp": "n_startup_trials", "nsgaii": "population_size"}
    plan = plan_of(sampler, **({long[sampler]: 10**6} if sampler in long else {}))
    study, count = optuna.create_study(), 256
    columns = {key: [] for key in space}
    for number in range(count):
        study.sampler = make_sampler(plan, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = study.ask(space)
        study.tell(trial, 0.0)
        for key, column in columns.items():
            column.append(float(trial.params[key]))
    for key, column in columns.items():
        bins = np.histogram(column, 4)[0]
        assert ((bins - count / 4) ** 2 / (count / 4)).sum() < 16.3, key  # p = 0.001
        if sampler != "qmc":  # a low-discrepancy sequence is not independent, and should not be
            assert abs(np.corrcoef(column[1:], column[:-1])[0, 1]) < 4 / math.sqrt(count), key
    pairs = [*zip(columns["lr"], columns["r"], strict=True)]
    assert abs(np.corrcoef(np.array(pairs).T)[0, 1]) < 4 / math.sqrt(count)


def test_enqueued_repetition_is_not_run():
    space = FEW_VALUES["strings"]
    study = optuna.create_study()
    for model in ("S", "S"):
        study.enqueue_trial({"model": model})
    trials = [study.ask() for _ in range(2)]
    reasons = [draw_params(study, t._trial_id, plan_of("random"), space) for t in trials]
    assert reasons[0] is None and "trial 0" in reasons[1]


def test_partly_enqueued_trial_draws_the_rest_without_repetition():
    space, study = FEW_VALUES["two keys"], optuna.create_study()
    reasons = []
    for _ in range(4):
        study.enqueue_trial({"a": True})
        reasons.append(draw_params(study, study.ask()._trial_id, plan_of("random"), space))
    assert {trial.params["b"] for trial in study.trials[:3]} == {1, 2, 3}
    assert reasons[:3] == [None] * 3 and "combination" in reasons[3]


FEW = ["hydra.sweeper.study_name=s", "algo.imag_starts=null,2"]


def run_one(study):
    """Run the next trial as a pool does. Return its parameters as typed, or None if there is none."""
    task = study.next_task()
    if task is None:
        return None
    study.record_outcome(task, RunOutcome("finished", {"eval/return": [(10, 1.0)]}, 10))
    return task.label.split(" ", 2)[2]


def finish(study):
    """Run the trials of a study. Return their parameters."""
    points = list(iter(lambda: run_one(study), None))
    assert study.is_done()
    study.close()
    return points


def test_study_over_two_values_ends_after_both(make_plan):
    for plan in make_plan(*FEW, "hydra.sweeper.n_trials=7"):
        study = Study(plan)
        assert len(set(finish(study))) == 2
        assert study.total == 2
        assert [row.state for row in study.rows] == ["finished"] * 2


def test_driver_killed_around_the_draw_changes_no_later_draw(make_plan, monkeypatch):
    space = ["algo.optimizer.lr=tag(log,interval(1e-4,1e-2))", "lora.r=4,8"]
    space += ["hydra.sweeper.n_trials=3"]
    store = draws._store

    def die_before(*args):
        raise Killed

    def die_after(*args):
        store(*args)
        raise Killed

    points = {}
    for name, death in {"whole": None, "before": die_before, "after": die_after}.items():
        for plan in make_plan(f"hydra.sweeper.study_name={name}", *space):
            points[name] = []
            for _ in range(3):
                if death is not None:
                    monkeypatch.setattr(draws, "_store", death)
                    study = Study(plan)
                    with pytest.raises(Killed):
                        study.next_task()
                    study.close()
                monkeypatch.setattr(draws, "_store", store)
                study = Study(plan)
                points[name].append(run_one(study))
                study.close()
    assert len(set(points["whole"])) == 3
    assert points["before"] == points["after"] == points["whole"]
