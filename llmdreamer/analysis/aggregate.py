"""Statistics of few runs: pure functions on arrays. With the same seed, results are identical.

Interquartile mean, stratified bootstrap, performance profile and probability of improvement as in
Agarwal et al. 2021 (arXiv:2108.13264, sections 4.1 to 4.3). Strata are environments.
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
CHUNK_VALUES = 4_000_000  # values held at a time while resampling: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A statistic with its interval; `low` and `high` are NaN if n is 1.

    `p` is None if nothing was tested. The fields are arrays if the values had more than one axis.
    """

    value: Array
    low: Array
    high: Array
    n: int
    p: float | None = None


def iqm(values: Array, axis: int = -1) -> Array:
    """Interquartile mean: the mean without the floor(n / 4) lowest and highest values.

    For 4 values it is the mean of the middle two; for fewer values it is their mean.
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
    """Compute a statistic with its stratified percentile-bootstrap interval.

    Args:
        values: (n, ...), one entry for each run.
        strata: (n,), the environment of each run; runs are resampled within it. None: one stratum.
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


def paired_difference(
    values: Array, others: Array, strata: NDArray | None = None, seed: int = 0
) -> Estimate:
    """Mean of `values[i] - others[i]`, with a bootstrap over pairs of one seed and environment.

    It is the mean, because an interquartile mean of few differences drops the pairs that matter. Its p
    permutes arms over all runs of an environment, not within pairs. A seed gives both arms the same
    first states of the environment and nothing else, and flips of 5 pairs cannot reach 5%.
    """
    estimate = bootstrap(np.asarray(values) - np.asarray(others), strata, _mean, seed=seed)
    p = permutation_p(values, others, strata, strata, seed=seed) if len(values) > 1 else None
    return Estimate(estimate.value, estimate.low, estimate.high, estimate.n, p)


def permutation_p(
    values: Array,
    others: Array,
    strata: NDArray | None = None,
    other_strata: NDArray | None = None,
    max_permutations: int = 20_000,
    seed: int = 0,
) -> float:
    """Two-sided p of the difference of means, with the arms permuted within each environment.

    With a single environment and at most `max_permutations` permutations (5 runs against 5 have 252),
    all are used. Otherwise that many are drawn, and the observed one is among them.
    """
    values, others = np.asarray(values, np.float64), np.asarray(others, np.float64)
    strata = _strata(values, strata)
    other_strata = _strata(others, other_strata)
    observed, permuted = 0.0, np.zeros(1)
    names = [name for name in np.unique(strata) if (other_strata == name).any()]
    rng = np.random.default_rng(seed)
    for name in names:
        first, second = values[strata == name], others[other_strata == name]
        observed += first.mean() - second.mean()
        differences = _permuted_differences(first, second, len(names) == 1, max_permutations, rng)
        permuted = differences if len(permuted) == 1 else permuted + differences
    # Rounding must not decide whether a permutation is as extreme as the observed one.
    tolerance = 1e-9 * max(1.0, float(np.abs(np.concatenate([values, others])).max()))
    extreme = np.abs(permuted) >= abs(observed) - tolerance
    return float(extreme.mean())


def holm(p: Array) -> Array:
    """Adjust p values that are tested together by Holm's step-down method."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def probability_of_improvement(
    values: Array,
    others: Array,
    strata: NDArray | None = None,
    other_strata: NDArray | None = None,
    repetitions: int = REPETITIONS,
    seed: int = 0,
) -> Estimate:
    """P(a run of `values` beats one of `others`), averaged over environments; a tie counts half."""
    values, others = np.asarray(values, np.float64), np.asarray(others, np.float64)
    strata, other_strata = _strata(values, strata), _strata(others, other_strata)
    names = [name for name in np.unique(strata) if (other_strata == name).any()]
    rng = np.random.default_rng(seed)
    points, draws = [], []
    for name in names:
        first, second = values[strata == name], others[other_strata == name]
        wins = (first[:, None] > second) + 0.5 * (first[:, None] == second)
        rows = rng.integers(len(first), size=(repetitions, len(first)))
        columns = rng.integers(len(second), size=(repetitions, len(second)))
        points.append(wins.mean())
        draws.append(wins[rows[:, :, None], columns[:, None, :]].mean((1, 2)))
    n = min(len(values), len(others))
    low, high = _percentiles(np.mean(draws, 0)) if n > 1 else (np.array(np.nan),) * 2
    return Estimate(np.mean(points), low, high, n)


def performance_profile(
    values: Array, thresholds: Array, strata: NDArray | None = None, seed: int = 0
) -> Estimate:
    """Share of runs whose score is above each threshold, with intervals."""
    above = (np.asarray(values)[:, None] > thresholds).astype(np.float64)
    return bootstrap(above, strata, _mean, seed=seed)


def normalize(values: Array, low: Array, high: Array) -> Array:
    """Scale scores so that `low` becomes 0 and `high` becomes 1."""
    return (np.asarray(values) - low) / (np.asarray(high) - low)


def interpolate(x: Array, y: Array, grid: Array) -> Array:
    """Interpolate a curve linearly at the points of `grid`; NaN outside the curve."""
    return np.interp(grid, x, y, left=np.nan, right=np.nan)


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
    """Return (repetitions, ...): the statistic of runs drawn with replacement within each stratum."""
    strata = _strata(values, strata)
    members = [np.flatnonzero(strata == name) for name in np.unique(strata)]
    drawn = np.concatenate(
        [
            indices[rng.integers(len(indices), size=(repetitions, len(indices)))]
            for indices in members
        ],
        axis=1,
    )
    chunk = max(1, CHUNK_VALUES // max(1, values.size))
    chunks = [
        statistic(values[drawn[start : start + chunk]], 1) for start in range(0, repetitions, chunk)
    ]
    return np.concatenate(chunks)


def _permuted_differences(
    first: Array,
    second: Array,
    may_enumerate: bool,
    max_permutations: int,
    rng: np.random.Generator,
) -> Array:
    """Differences of means after permuting the arms; in a random sample, entry 0 is the observed one."""
    pooled, n, m = np.concatenate([first, second]), len(first), len(second)
    if may_enumerate and comb(n + m, n) <= max_permutations:
        chosen = np.array(list(combinations(range(n + m), n)))
        total = pooled[chosen].sum(1)
    else:
        order = rng.permuted(np.tile(np.arange(n + m), (max_permutations, 1)), axis=1)
        order[0] = np.arange(n + m)
        total = pooled[order[:, :n]].sum(1)
    return total / n - (pooled.sum() - total) / m
