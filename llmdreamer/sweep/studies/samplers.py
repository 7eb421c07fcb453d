"""Optuna's samplers and pruners by name, with defaults that suit training runs."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
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
    name, options = plan.settings.sampler, dict(plan.settings.sampler_options)
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
        return _construct("pruner", name, kind, options)


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
