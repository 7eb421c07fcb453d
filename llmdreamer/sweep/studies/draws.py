"""Draws the parameters of a trial: no two trials of a study have the same.

A draw depends on the study's seed, the trial's number and the trials before it, and on nothing else. So a
study that was interrupted anywhere draws what an unbroken one draws.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import optuna
from optuna import pruners
from optuna.distributions import _get_single_value
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, Trial, TrialState

from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.studies.distributions import SearchSpace, point_at, point_key, space_size
from llmdreamer.sweep.studies.samplers import GRID, draw_seed, make_sampler
from llmdreamer.sweep.studies.search_space import DRAW_ATTRIBUTE, params_in_space, stored_params

SAMPLER_DRAWS = 10  # how often the sampler is asked before a point is taken in order


def draw_params(
    study: optuna.Study,
    trial_id: int,
    plan: Plan,
    space: SearchSpace,
    start: Sequence[Mapping[str, Any]] = (),
) -> str | None:
    """Draw the parameters of a trial and store them, unless they are stored already.

    The parameters are stored in one write, so that no driver can die between two of them.

    Args:
        start: points to run first.

    Returns:
        None, or the reason why the trial must not run: its parameters are those of another trial, or all
        combinations have been used.
    """
    trials = study.get_trials(deepcopy=False)
    frozen = next(trial for trial in trials if trial._trial_id == trial_id)
    stored = params_in_space(stored_params(frozen), space)
    seen = _points(trials, frozen, space, all_others=len(stored) < len(space))
    for params in _candidates(study, frozen, plan, space, stored, start):
        point = point_key(space, params)
        if point is not None and point not in seen:
            _store(study, frozen, params, space)
            return None
    if len(stored) == len(space):
        return f"trial {seen[point_key(space, stored)]} has the same parameters"
    return "every combination of the search space has been used"


def _store(
    study: optuna.Study, frozen: FrozenTrial, params: Mapping[str, Any], space: SearchSpace
) -> None:
    storage, trial_id = study._storage, frozen._trial_id
    storage.set_trial_system_attr(trial_id, DRAW_ATTRIBUTE, params)
    for name, distribution in space.items():
        if name not in frozen.params:
            value = distribution.to_internal_repr(params[name])
            storage.set_trial_param(trial_id, name, value, distribution)


def _points(
    trials: Sequence[FrozenTrial], drawn: FrozenTrial, space: SearchSpace, *, all_others: bool
) -> dict[tuple[float, ...] | None, int]:
    """Return the points of other trials, with the number of the first trial that has each.

    Args:
        all_others: also those of later trials that have started. False: of earlier trials only.
    """
    points: dict[tuple[float, ...] | None, int] = {}
    for trial in trials:
        is_later = trial.number > drawn.number
        if trial.number == drawn.number:
            continue
        if is_later and (not all_others or trial.state is TrialState.WAITING):
            continue
        point = point_key(space, params_in_space(stored_params(trial), space))
        if point is not None:
            points.setdefault(point, trial.number)
    return points


def _candidates(
    study: optuna.Study,
    frozen: FrozenTrial,
    plan: Plan,
    space: SearchSpace,
    stored: dict[str, Any],
    start: Sequence[Mapping[str, Any]],
) -> Iterator[dict[str, Any]]:
    """Yield points in the order in which they are considered.

    Args:
        stored: parameters that the trial has already, by `enqueue_trial` or by a driver.
    """
    if len(stored) == len(space):
        yield dict(stored)
        return
    if not stored:
        yield from (dict(point) for point in start)
    seed, free = plan.seeds[0], {key: space[key] for key in space if key not in stored}
    if plan.settings.sampler != GRID:
        for attempt in range(SAMPLER_DRAWS):
            sampler = make_sampler(plan, frozen.number, attempt)
            with _one_torch_thread() if plan.settings.sampler == "gp" else nullcontext():
                params = _sample(study, frozen, sampler, free)
            yield params | stored
    size = space_size(free)
    for attempt in range(SAMPLER_DRAWS, 2 * SAMPLER_DRAWS if size is None else SAMPLER_DRAWS):
        sampler = RandomSampler(draw_seed(seed, frozen.number, attempt))
        yield _sample(study, frozen, sampler, free) | stored
    first = np.random.default_rng([seed, frozen.number]).random()
    for step in range(size or 0):
        yield point_at(free, (int(first * (size or 0)) + step) % (size or 1)) | stored


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """Let torch round in one order: the Gaussian process of a draw must not depend on its threads."""
    import torch  # takes seconds, and only this sampler needs it

    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def _sample(
    study: optuna.Study, frozen: FrozenTrial, sampler: BaseSampler, space: SearchSpace
) -> dict[str, Any]:
    """Draw as `Trial._suggest` does, but without storing anything."""
    study.sampler = sampler
    trial = Trial(study, frozen._trial_id)
    # A storage may return its own object, which must not get values that are not drawn for good.
    cached = trial._cached_frozen_trial = copy.deepcopy(trial._cached_frozen_trial)
    for name, distribution in space.items():
        if distribution.single():
            value = _get_single_value(distribution)
        elif trial._is_relative_param(name, distribution):
            value = trial.relative_params[name]
        else:
            filtered = pruners._filter_study(study, cached)
            value = sampler.sample_independent(filtered, cached, name, distribution)
        cached.params[name], cached.distributions[name] = value, distribution
    return {name: cached.params[name] for name in space}
