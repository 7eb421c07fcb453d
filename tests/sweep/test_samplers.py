"""Every sampler and pruner by its name, gone on with as a study is: anew for each trial."""

import warnings
from types import SimpleNamespace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from llmdreamer.sweep.settings import SweeperSettings
from llmdreamer.sweep.studies.samplers import PRUNERS, SAMPLERS, make_pruner, make_sampler
from llmdreamer.utils.errors import ConfigError

SPACE = {"lr": FloatDistribution(1e-4, 1e-2, log=True), "r": CategoricalDistribution([4, 8])}
STEPS = SimpleNamespace(
    algo=SimpleNamespace(total_steps=5400), env=SimpleNamespace(action_repeat=1)
)


def plan(seed=0, seeds=1, **settings):
    return SimpleNamespace(
        settings=SweeperSettings(**settings), seeds=list(range(seed, seed + seeds)), base=STEPS
    )


def drawn(asked, trials, space=SPACE):
    """The parameters of the first trials, each asked for with a sampler made anew."""
    study = optuna.create_study()
    for number in range(trials):
        study.sampler = make_sampler(asked, space, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = study.ask(space)
        study.tell(trial, number)
    return [tuple(trial.params.values()) for trial in study.trials]


@pytest.mark.parametrize("name", sorted(set(SAMPLERS) - {"grid"}))
def test_a_sampler_draws_the_same_again_and_nothing_twice(name):
    options = {"n_startup_trials": 2} if name in ("tpe", "gp") else {}
    asked = plan(sampler=name, sampler_options=options)
    first = drawn(asked, 4)
    assert first == drawn(asked, 4)
    assert len(set(first)) == 4


def test_the_first_seed_chooses_the_draws():
    assert drawn(plan(sampler="random"), 2) != drawn(plan(seed=5, sampler="random"), 2)


def test_a_grid_visits_every_point_once():
    space = {"lr": CategoricalDistribution([1, 2, 3]), "r": CategoricalDistribution([4, 8])}
    with pytest.raises(RuntimeError, match=r"Study\.stop"):  # GridSampler's way to say: the last
        drawn(plan(sampler="grid"), 6, space)
    assert len(set(drawn(plan(sampler="grid"), 5, space))) == 5


def test_a_grid_of_an_interval_is_refused():
    with pytest.raises(ConfigError, match="lr: hydra.sweeper.sampler=grid takes lists only"):
        make_sampler(plan(sampler="grid"), SPACE, 0)


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_is_made(name):
    assert isinstance(make_pruner(plan(pruner=name)), optuna.pruners.BasePruner)


def test_hyperbands_brackets_are_of_env_steps_or_of_seeds():
    for seeds, low, high in ((1, 200, 5400), (9, 1, 9)):
        pruner = make_pruner(plan(seeds=seeds, pruner="hyperband"))
        assert (pruner._min_resource, pruner._max_resource) == (low, high)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"sampler": "tpee"}, "choose from tpe, gp, .*; did you mean 'tpe'"),
        (
            {"sampler_options": {"n_startup": 3}},
            "tpe has none such; did you mean 'n_startup_trials'",
        ),
    ],
)
def test_a_misspelt_sampler_is_one_line(settings, line):
    with pytest.raises(ConfigError, match=line):
        make_sampler(plan(**settings), SPACE, 0)
