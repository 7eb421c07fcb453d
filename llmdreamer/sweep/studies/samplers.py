"""Optuna's samplers and pruners by name, with what a training run wants of them by default."""

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

Space = Mapping[str, BaseDistribution]
# What a sampler remembers is in the storage, but for its random numbers: those come from the seed.
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
# These go through one sequence: every trial must begin it alike.
_SEQUENCES = ("qmc", "grid")


def make_sampler(plan: Plan, space: Space, trials: int) -> BaseSampler:
    """The sampler of the next trial, seeded by the first seed and the number of trials so far.

    Made anew for each trial, so that a study gone on with, by one driver or several, neither
    repeats random numbers nor depends on who asks.
    """
    name, options = plan.settings.sampler, dict(plan.settings.sampler_options)
    kind = _chosen("sampler", name, SAMPLERS)
    seed = plan.seeds[0] + (0 if name in _SEQUENCES else trials)
    # A run takes long and others are under way: let TPE keep away from what they try.
    if name == "tpe":
        options.setdefault("constant_liar", True)
    if name == "grid":
        options["search_space"] = grid_values(space)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return _made("sampler", name, kind, {"seed": seed} | options)


def make_pruner(plan: Plan) -> BasePruner:
    name, options = plan.settings.pruner, dict(plan.settings.pruner_options)
    kind = _chosen("pruner", name, PRUNERS)
    # Optuna's defaults count training epochs; ours are environment steps (or seeds).
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
        return _made("pruner", name, kind, options)


def grid_values(space: Space) -> dict[str, list[Any]]:
    """Every value of every parameter.

    Raises:
        ConfigError: if a parameter has no end of values.
    """
    values = {}
    for name, distribution in space.items():
        try:
            values[name] = list(OptunaSweeperImpl._to_grid_sampler_choices(distribution))
        except ValueError as error:
            raise ConfigError(f"{name}: hydra.sweeper.sampler=grid takes lists only") from error
    return values


def grid_size(space: Space) -> int:
    return math.prod(len(values) for values in grid_values(space).values())


def _chosen(what: str, name: str, choices: Mapping[str, Any]) -> Any:
    if name not in choices:
        near = did_you_mean(name, choices)
        raise ConfigError(f"hydra.sweeper.{what}={name}: choose from {', '.join(choices)}{near}")
    return choices[name]


def _made(what: str, name: str, kind: Callable[..., Any], options: dict[str, Any]) -> Any:
    known = inspect.signature(kind).parameters
    for option in options:
        if option not in known:
            near = did_you_mean(option, known)
            raise ConfigError(f"hydra.sweeper.{what}_options.{option}: {name} has none such{near}")
    try:
        return kind(**options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"hydra.sweeper.{what}_options={options}: {error}") from error
