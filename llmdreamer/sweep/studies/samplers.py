"""Optuna's samplers and pruners by name, with defaults that suit training runs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler
from optuna.study import Study

from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.studies.distributions import SearchSpace, continuous_key
from llmdreamer.sweep.studies.hub import PREFIX, hub_sampler
from llmdreamer.utils.errors import ConfigError, did_you_mean

GRID = "grid"
"""The sampler that takes every point of a finite space once. `draws` does this without Optuna."""


class NumberedQMCSampler(QMCSampler):
    """QMC whose place in the sequence is the trial's number, not a counter in the database.

    A driver that dies between the counter and the draw would skip a point of the sequence.
    """

    place = 0

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self.place


# A sampler keeps all its state in the storage, except for its random numbers, which come from the seed.
SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": NumberedQMCSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "random": RandomSampler,
}
PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}

# The small study in which options are tried. Five trials are more than two generations of two.
_TRIED = 5
_SMALL_SPACE = {"x": FloatDistribution(0, 1), "y": CategoricalDistribution([0, 1])}
_BEGIN = {  # the defaults of Optuna are longer than the small study
    "tpe": {"n_startup_trials": 2},
    "gp": {"n_startup_trials": 2},
    "nsgaii": {"population_size": 2},
    "median": {"n_startup_trials": 2},
}


def make_sampler(plan: Plan, number: int, attempt: int = 0) -> BaseSampler:
    """Make the sampler of a trial.

    Each trial gets a new sampler. A study that is resumed, or shared by several drivers, therefore draws
    what one driver without a stop would.

    Args:
        number: the number of the trial. Draws of different trials are independent.
        attempt: counts the draws of one trial, of which only the last is used.

    Raises:
        ConfigError: if the sampler or one of its options is unknown or invalid.
    """
    if "seed" in plan.settings.sampler_options:  # every trial would draw the same point
        raise ConfigError(
            "hydra.sweeper.sampler_options.seed: each trial has a seed of its own;"
            f" use seed={plan.settings.sampler_options['seed']}, from which they come"
        )
    return _new_sampler(plan, plan.settings.sampler_options, number, attempt)


def _new_sampler(plan: Plan, given: Mapping[str, Any], number: int, attempt: int) -> BaseSampler:
    name, options = plan.settings.sampler, dict(given)
    kind = _sampler_kind(plan)
    seed = draw_seed(plan.seeds[0], number, attempt)
    # Runs take long and several run at once: keep TPE away from parameters that are being tried.
    if name == "tpe":
        options.setdefault("constant_liar", True)
    if name == "qmc":  # the seed selects the sequence, which all trials share
        options.setdefault("independent_sampler", RandomSampler(seed=seed))
        seed = plan.seeds[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        has_seed = name in SAMPLERS or "seed" in inspect.signature(kind).parameters
        sampler = _construct("sampler", name, kind, ({"seed": seed} if has_seed else {}) | options)
    if isinstance(sampler, NumberedQMCSampler):
        sampler.place = max(0, number - 1) + attempt  # the first trial is drawn at random
    assert isinstance(sampler, BaseSampler)
    return sampler


def _sampler_kind(plan: Plan) -> Callable[..., BaseSampler]:
    name = plan.settings.sampler
    if name.startswith(PREFIX):
        settings = plan.settings
        return hub_sampler(name, settings.hub_ref, settings.hub_folder, tuple(plan.base.trust))
    kind: Callable[..., BaseSampler] = _choose("sampler", name, SAMPLERS)
    return kind


def draw_seed(seed: int, number: int, attempt: int = 0) -> int:
    """Return a seed for one draw of a trial. Sums of seed and number would give correlated draws."""
    return int(np.random.SeedSequence([seed, number, attempt]).generate_state(1)[0])


def check_sampler(plan: Plan, space: SearchSpace) -> None:
    """Refuse an unknown sampler, its invalid options, and a grid over a continuous parameter.

    Raises:
        ConfigError: as described.
    """
    if plan.settings.sampler != GRID:
        make_sampler(plan, 0)
        if plan.settings.sampler in SAMPLERS:  # others may not know this space
            _try_sampler(plan)
        return
    for option in plan.settings.sampler_options:
        raise ConfigError(f"hydra.sweeper.sampler_options.{option}: {GRID} has no options")
    if (key := continuous_key(space)) is not None:
        raise ConfigError(f"{key}: hydra.sweeper.sampler={GRID} takes lists of values only")


def make_pruner(plan: Plan) -> BasePruner:
    """Make the study's pruner.

    Raises:
        ConfigError: if the pruner or one of its options is unknown or invalid.
    """
    name, options = plan.settings.pruner, dict(plan.settings.pruner_options)
    kind = _choose("pruner", name, PRUNERS)
    # Optuna's defaults suit epochs. Our steps are environment steps, or seeds if there are several.
    steps = plan.base.algo.total_steps * plan.base.env.action_repeat
    if len(plan.seeds) > 1:
        steps = len(plan.seeds)
    if name == "successive_halving":
        options.setdefault("min_resource", max(1, steps // 16))
    if name == "hyperband":
        options.setdefault("min_resource", max(1, steps // 27))
        options.setdefault("max_resource", steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        pruner = _construct("pruner", name, kind, options)
        short = _construct("pruner", name, kind, _shorten(name, options))
    assert isinstance(pruner, BasePruner)
    _try_out(
        "pruner",
        plan.settings.pruner_options,
        lambda number: RandomSampler(seed=number),
        short,
        sorted({1, max(1, steps // 2), steps}),
    )
    return pruner


def _try_sampler(plan: Plan) -> None:
    given = plan.settings.sampler_options
    short = _shorten(plan.settings.sampler, given)
    _try_out("sampler", given, lambda number: _new_sampler(plan, short, number, 0), None, ())


def _try_out(
    setting: str,
    given: Mapping[str, Any],
    sampler: Callable[[int], BaseSampler],
    pruner: BasePruner | None,
    steps: Sequence[int],
) -> None:
    """Run a few trials of a small study in memory: Optuna reads some options only when it uses them.

    Args:
        given: the options that the user typed.
        sampler: makes the sampler of a trial, by its number.
        steps: the steps at which each trial asks the pruner.

    Raises:
        ConfigError: if anything fails.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            study = optuna.create_study(sampler=RandomSampler(seed=0), pruner=pruner)
            for number in range(_TRIED):
                study.sampler = sampler(number)
                trial = study.ask(_SMALL_SPACE)
                for step in steps:
                    trial.report(number, step)
                    trial.should_prune()
                study.tell(trial, number)
    except ConfigError:
        raise
    except Exception as error:  # whatever an option of a wrong kind leads to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(f"hydra.sweeper.{setting}_options={dict(given)}: {reason}") from error
    finally:
        optuna.logging.set_verbosity(verbosity)


def _shorten(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Let a sampler or pruner begin its work after two trials."""
    short = dict(options)
    for option, count in _BEGIN.get(name, {}).items():
        if type(short.get(option, count)) is int:
            short[option] = min(short.get(option, count), count)
    return short


def _choose(setting: str, name: str, choices: Mapping[str, Any]) -> Any:
    if name not in choices:
        names = [*choices, *([GRID, f"{PREFIX}NAME"] if setting == "sampler" else [])]
        near = did_you_mean(name, names)
        raise ConfigError(f"hydra.sweeper.{setting}={name}: choose from {', '.join(names)}{near}")
    return choices[name]


def _construct(setting: str, name: str, kind: Callable[..., Any], options: dict[str, Any]) -> Any:
    parameters = inspect.signature(kind).parameters
    for option in options:
        if option not in parameters:
            near = did_you_mean(option, parameters)
            raise ConfigError(
                f"hydra.sweeper.{setting}_options.{option}: {name} has no such option{near}"
            )
    try:
        return kind(**options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"hydra.sweeper.{setting}_options={options}: {error}") from error
