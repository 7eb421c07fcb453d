"""Statistics of few runs: pure functions on arrays; a seed makes each figure repeat to the byte.

Interquartile mean, stratified bootstrap, performance profile and probability of improvement as in
Agarwal et al. 2021 (arXiv:2108.13264, sections 4.1 to 4.3); strata are environments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array, int], Array]
"""`statistic(values, axis)` reduces one axis."""

REPETITIONS = 2000
LEVEL = 0.95
_CELLS = 4_000_000  # numbers held at a time while resampling: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A statistic and its interval; `low` and `high` are NaN where n is 1.

    `p` is None where nothing was tested. Arrays where the values had more than one axis.
    """

    value: Array
    low: Array
    high: Array
    n: int
    p: float | None = None


def iqm(values: Array, axis: int = -1) -> Array:
    """Interquartile mean: what is left after floor(n / 4) values are cut at each end.

    Of 4 values it is the mean of the middle two, of fewer the mean.
    """
    values = np.moveaxis(np.asarray(values, np.float64), axis, -1)
    n = values.shape[-1]
    cut = n // 4
    if cut == 0:
        return values.mean(-1)
    return np.partition(values, (cut, n - cut - 1), axis=-1)[..., cut : n - cut].mean(-1)


def bootstrap(
    values: Array,
    strata: NDArray | None = None,
    statistic: Statistic = iqm,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Estimate:
    """A statistic with its stratified percentile-bootstrap interval.

    Args:
        values: (n, ...), a run each.
        strata: (n,), the environment of each run; runs are drawn anew within it. None: one.
        statistic: of all runs together.
    """
    values = np.asarray(values, np.float64)
    value = statistic(values, 0)
    if len(values) < 2:
        nothing = np.full_like(value, np.nan)
        return Estimate(value, nothing, nothing, len(values))
    draws = _resampled(values, strata, statistic, repetitions, np.random.default_rng(seed))
    low, high = _percentiles(draws)
    return Estimate(value, low, high, len(values))


def difference(
    values: Array,
    others: Array,
    strata: NDArray | None = None,
    other_strata: NDArray | None = None,
    statistic: Statistic = iqm,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Estimate:
    """Statistic of `values` minus that of `others`, each resampled by itself, and a permutation p.

    Args:
        values: (n,); `others`: (m,): final scores of two arms.
    """
    rng = np.random.default_rng(seed)
    value = statistic(values, 0) - statistic(others, 0)
    n = min(len(values), len(others))
    if n < 2:
        nothing = np.full_like(value, np.nan)
        return Estimate(value, nothing, nothing, n)
    draws = _resampled(values, strata, statistic, repetitions, rng)
    draws = draws - _resampled(others, other_strata, statistic, repetitions, rng)
    low, high = _percentiles(draws)
    p = permutation_p(values, others, strata, other_strata, seed=seed)
    return Estimate(value, low, high, n, p)


def paired_difference(
    values: Array, others: Array, strata: NDArray | None = None, seed: int = 0
) -> Estimate:
    """Mean of `values[i] - others[i]` over pairs of one seed and environment, bootstrap over pairs.

    The mean, as an interquartile mean of few differences would drop the pairs that matter. Its p
    is that of shuffling arms over all runs of an environment, not within pairs: a seed gives
    the two arms the same first states of the environment and nothing else in common, and flips
    of 5 pairs cannot reach 5% at all.
    """
    found = bootstrap(np.asarray(values) - np.asarray(others), strata, _mean, seed=seed)
    p = permutation_p(values, others, strata, strata, seed=seed) if len(values) > 1 else None
    return Estimate(found.value, found.low, found.high, found.n, p)


def permutation_p(
    values: Array,
    others: Array,
    strata: NDArray | None = None,
    other_strata: NDArray | None = None,
    most: int = 20_000,
    seed: int = 0,
) -> float:
    """Two-sided p of the difference of means, the arms' names shuffled within each environment.

    All arrangements if one environment has at most `most` (5 against 5 have 252), else that many
    at random, counting the observed one.
    """
    values, others = np.asarray(values, np.float64), np.asarray(others, np.float64)
    strata = _strata(values, strata)
    other_strata = _strata(others, other_strata)
    observed, shuffled = 0.0, np.zeros(1)
    names = [name for name in np.unique(strata) if (other_strata == name).any()]
    rng = np.random.default_rng(seed)
    for name in names:
        one, two = values[strata == name], others[other_strata == name]
        observed += one.mean() - two.mean()
        means = _arrangements(one, two, len(names) == 1, most, rng)
        shuffled = means if len(shuffled) == 1 else shuffled + means
    # Rounding must not decide whether an arrangement is as extreme as the observed one.
    tolerance = 1e-9 * max(1.0, float(np.abs(np.concatenate([values, others])).max()))
    extreme = np.abs(shuffled) >= abs(observed) - tolerance
    return float(extreme.mean())


def holm(p: Array) -> Array:
    """Holm's step-down adjustment of p values tested together."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def improvement(
    values: Array,
    others: Array,
    strata: NDArray | None = None,
    other_strata: NDArray | None = None,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Estimate:
    """P(a run of `values` beats one of `others`), a tie counting half, averaged over environments."""
    values, others = np.asarray(values, np.float64), np.asarray(others, np.float64)
    strata, other_strata = _strata(values, strata), _strata(others, other_strata)
    names = [name for name in np.unique(strata) if (other_strata == name).any()]
    rng = np.random.default_rng(seed)
    points, draws = [], []
    for name in names:
        one, two = values[strata == name], others[other_strata == name]
        wins = (one[:, None] > two) + 0.5 * (one[:, None] == two)
        rows = rng.integers(len(one), size=(repetitions, len(one)))
        columns = rng.integers(len(two), size=(repetitions, len(two)))
        points.append(wins.mean())
        draws.append(wins[rows[:, :, None], columns[:, None, :]].mean((1, 2)))
    n = min(len(values), len(others))
    low, high = _percentiles(np.mean(draws, 0)) if n > 1 else (np.array(np.nan),) * 2
    return Estimate(np.mean(points), low, high, n)


def profile(
    values: Array, thresholds: Array, strata: NDArray | None = None, seed: int = 0
) -> Estimate:
    """Performance profile: the share of runs whose score is above each threshold, with intervals."""
    above = (np.asarray(values)[:, None] > thresholds).astype(np.float64)
    return bootstrap(above, strata, _mean, seed=seed)


def normalise(values: Array, low: Array, high: Array) -> Array:
    """Scores of several environments on one scale: 0 at `low`, 1 at `high`."""
    return (np.asarray(values) - low) / (np.asarray(high) - low)


def on_grid(x: Array, y: Array, grid: Array) -> Array:
    """A curve at the points of `grid`, linear between its own, NaN before and after them."""
    return np.interp(grid, x, y, left=np.nan, right=np.nan)


def at_budget(x: Array, y: Array, budget: float) -> float:
    """The last value of a curve at or before `budget`; NaN if it begins later."""
    reached = np.searchsorted(x, budget, side="right")
    return float(y[reached - 1]) if reached else float("nan")


def _mean(values: Array, axis: int) -> Array:
    return np.mean(values, axis=axis)


def _strata(values: Array, strata: NDArray | None) -> NDArray:
    return np.zeros(len(values), np.int64) if strata is None else np.asarray(strata)


def _percentiles(draws: Array) -> tuple[Array, Array]:
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
    return low, high


def _resampled(
    values: Array,
    strata: NDArray | None,
    statistic: Statistic,
    repetitions: int,
    rng: np.random.Generator,
) -> Array:
    """(repetitions, ...): the statistic of runs drawn with replacement within each stratum."""
    strata = _strata(values, strata)
    members = [np.flatnonzero(strata == name) for name in np.unique(strata)]
    drawn = np.concatenate(
        [rows[rng.integers(len(rows), size=(repetitions, len(rows)))] for rows in members], axis=1
    )
    chunk = max(1, _CELLS // max(1, values.size))
    parts = [
        statistic(values[drawn[start : start + chunk]], 1) for start in range(0, repetitions, chunk)
    ]
    return np.concatenate(parts)


def _arrangements(
    one: Array, two: Array, may_enumerate: bool, most: int, rng: np.random.Generator
) -> Array:
    """Differences of means under shuffled names; row 0 of a random sample is the observed one."""
    pooled, n, m = np.concatenate([one, two]), len(one), len(two)
    if may_enumerate and comb(n + m, n) <= most:
        chosen = np.array(list(combinations(range(n + m), n)))
        first = pooled[chosen].sum(1)
    else:
        order = rng.permuted(np.tile(np.arange(n + m), (most, 1)), axis=1)
        order[0] = np.arange(n + m)
        first = pooled[order[:, :n]].sum(1)
    return first / n - (pooled.sum() - first) / m
