"""Samplers and pruners by name. As in a study, each trial gets a new sampler."""

import warnings
from types import SimpleNamespace

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from llmdreamer.sweep.settings import SweeperSettings
from llmdreamer.sweep.studies.samplers import (
    PRUNERS,
    SAMPLERS,
    check_sampler,
    make_pruner,
    make_sampler,
)
from llmdreamer.utils.errors import ConfigError

SPACE = {"lr": FloatDistribution(1e-4, 1e-2, log=True), "r": CategoricalDistribution([4, 8])}
BASE = SimpleNamespace(algo=SimpleNamespace(total_steps=5400), env=SimpleNamespace(action_repeat=1))


def make_plan(seed=0, seeds=1, **settings):
    return SimpleNamespace(
        settings=SweeperSettings(**settings), seeds=list(range(seed, seed + seeds)), base=BASE
    )


def draw(plan, trials):
    """Return the parameters of the first trials, each drawn with a new sampler."""
    study = optuna.create_study()
    for number in range(trials):
        study.sampler = make_sampler(plan, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trial = study.ask(SPACE)
        study.tell(trial, number)
    return [tuple(trial.params.values()) for trial in study.trials]


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_sampler_is_reproducible_and_draws_no_point_twice(name):
    options = {"n_startup_trials": 2} if name in ("tpe", "gp") else {}
    plan = make_plan(sampler=name, sampler_options=options)
    first = draw(plan, 4)
    assert first == draw(plan, 4)
    assert len(set(first)) == 4


def test_sampler_draws_depend_on_the_first_seed():
    assert draw(make_plan(sampler="random"), 2) != draw(make_plan(seed=5, sampler="random"), 2)


def test_grid_sampler_refuses_an_interval():
    with pytest.raises(ConfigError, match=r"lr: hydra\.sweeper\.sampler=grid"):
        check_sampler(make_plan(sampler="grid"), SPACE)


def test_grid_sampler_refuses_options():
    plan = make_plan(sampler="grid", sampler_options={"seed": 3})
    with pytest.raises(ConfigError, match=r"sampler_options\.seed"):
        check_sampler(plan, {"r": SPACE["r"]})


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_can_be_constructed(name):
    assert isinstance(make_pruner(make_plan(pruner=name)), optuna.pruners.BasePruner)


def test_hyperband_brackets_count_env_steps_or_seeds():
    for seeds, low, high in ((1, 200, 5400), (9, 1, 9)):
        pruner = make_pruner(make_plan(seeds=seeds, pruner="hyperband"))
        assert (pruner._min_resource, pruner._max_resource) == (low, high)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"sampler": "tpee"}, "sampler=tpee.*'tpe'"),
        (
            {"sampler_options": {"n_startup": 3}},
            "n_startup.*'n_startup_trials'",
        ),
    ],
)
def test_misspelled_sampler_or_option_suggests_the_right_one(settings, match):
    with pytest.raises(ConfigError, match=match):
        check_sampler(make_plan(**settings), SPACE)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_seed_among_the_options_is_refused_and_the_right_key_named(name):
    with pytest.raises(ConfigError, match=r"sampler_options\.seed: .*use seed=3"):
        check_sampler(make_plan(sampler=name, sampler_options={"seed": 3}), SPACE)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tpe", {"n_startup_trials": "abc"}),
        ("tpe", {"gamma": 5}),
        ("tpe", {"weights": "x"}),
        ("tpe", {"n_ei_candidates": -5}),
        ("tpe", {"prior_weight": -1}),
        ("tpe", {"constraints_func": "x"}),
        ("qmc", {"independent_sampler": "random"}),
        ("gp", {"n_startup_trials": "abc"}),
        ("nsgaii", {"child_generation_strategy": "x"}),
    ],
)
def test_sampler_option_that_fails_at_a_draw_is_refused_before(name, options):
    with pytest.raises(ConfigError, match=rf"sampler_options=.*'{next(iter(options))}'") as error:
        check_sampler(make_plan(sampler=name, sampler_options=options), SPACE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hyperband", {"max_resource": 0}),
        ("hyperband", {"min_resource": "x"}),
        ("median", {"n_startup_trials": "abc"}),
        ("median", {"interval_steps": "abc"}),
        ("wilcoxon", {"p_threshold": "x"}),
    ],
)
def test_pruner_option_that_fails_at_a_report_is_refused_before(name, options):
    with pytest.raises(ConfigError, match=rf"pruner_options=.*'{next(iter(options))}'") as error:
        make_pruner(make_plan(pruner=name, pruner_options=options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_valid_sampler_options_pass_the_trial_draws(name):
    options = {"n_startup_trials": 40} if name in ("tpe", "gp") else {}
    check_sampler(make_plan(sampler=name, sampler_options=options), SPACE)
