"""Optuna's samplers and pruners by name, with defaults that suit training runs."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from llmdreamer.sweep.plan import Plan
from llmdreamer.utils.errors import ConfigError, did_you_mean

SearchSpace = Mapping[str, BaseDistribution]
# A sampler keeps all its state in the storage, except for its random numbers, which come from the seed.
SAMPLERS: dict[str, Callable[..., BaseSampler]] = {
    "tpe": optuna.samplers.TPESampler,
    "gp": optuna.samplers.GPSampler,
    "qmc": optuna.samplers.QMCSampler,
    "nsgaii": optuna.samplers.NSGAIISampler,
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.GridSampler,
}
PRUNERS: dict[str, Callable[..., BasePruner]] = {
    "none": optuna.pruners.NopPruner,
    "median": optuna.pruners.MedianPruner,
    "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
    "hyperband": optuna.pruners.HyperbandPruner,
    "wilcoxon": optuna.pruners.WilcoxonPruner,
}
# These samplers go through one sequence, which the seed selects: all trials must use the same seed.
_SEQUENCE_SAMPLERS = ("qmc", "grid")


def make_sampler(plan: Plan, space: SearchSpace, trial_count: int) -> BaseSampler:
    """Make the sampler of the next trial, seeded by the first seed plus the number of trials so far.

    Each trial gets a new sampler. A study that is resumed, or shared by several drivers, therefore never
    repeats random numbers, and its draws do not depend on the driver.

    Raises:
        ConfigError: if the sampler or one of its options is unknown or invalid.
    """
    name, options = plan.settings.sampler, dict(plan.settings.sampler_options)
    kind = _choose("sampler", name, SAMPLERS)
    seed = plan.seeds[0] + (0 if name in _SEQUENCE_SAMPLERS else trial_count)
    # Runs take long and several run at once: keep TPE away from parameters that are being tried.
    if name == "tpe":
        options.setdefault("constant_liar", True)
    if name == "grid":
        options["search_space"] = grid_values(space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _construct("sampler", name, kind, {"seed": seed} | options)


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
        return _construct("pruner", name, kind, options)


def grid_values(space: SearchSpace) -> dict[str, list[Any]]:
    """List the values of each parameter.

    Raises:
        ConfigError: if a parameter is continuous.
    """
    values = {}
    for name, distribution in space.items():
        try:
            values[name] = list(OptunaSweeperImpl._to_grid_sampler_choices(distribution))
        except ValueError as error:
            raise ConfigError(
                f"{name}: hydra.sweeper.sampler=grid takes lists of values only"
            ) from error
    return values


def grid_size(space: SearchSpace) -> int:
    return math.prod(len(values) for values in grid_values(space).values())


def _choose(setting: str, name: str, choices: Mapping[str, Any]) -> Any:
    if name not in choices:
        near = did_you_mean(name, choices)
        raise ConfigError(f"hydra.sweeper.{setting}={name}: choose from {', '.join(choices)}{near}")
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
