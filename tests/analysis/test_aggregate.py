"""The statistics against published numbers, SciPy and enumeration."""

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from llmdreamer.analysis import aggregate

# rliable, tests/rliable/metrics_test.py: runs x tasks, with the numbers expected there.
X = np.array([[1, 2], [2, 2], [1, 1], [2, 1]], float)
Y = np.array([[1, 1], [2, 2], [3, 3]], float)
TASKS_X, TASKS_Y = np.tile([0, 1], 4), np.tile([0, 1], 3)


def test_iqm_matches_rliables_examples():
    assert aggregate.iqm(X.ravel()) == 1.5
    assert aggregate.iqm(Y.ravel()) == 2


def test_probability_of_improvement_matches_rliables_example():
    estimate = aggregate.probability_of_improvement(X.ravel(), Y.ravel(), TASKS_X, TASKS_Y)
    assert estimate.value == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def atari() -> tuple[np.ndarray, np.ndarray]:
    """Human-normalized scores of 26 games x 5 runs, and the game of each."""
    table = pd.read_csv(Path(__file__).parent / "data" / "diamond_atari_100k.csv")
    runs = table.filter(like="run_").to_numpy().T
    scores = aggregate.normalize(runs, table["random"].to_numpy(), table["human"].to_numpy())
    return scores.ravel(), np.tile(table["game"].to_numpy(), len(runs))


def test_iqm_of_published_scores_is_the_published_value(atari):
    """arXiv:2405.12399, table 1: 0.641, and a mean of 1.459."""
    scores, _ = atari
    assert round(float(aggregate.iqm(scores)), 3) == 0.641
    assert round(float(scores.mean()), 3) == 1.459


# The expected values below are rliable 1.2.0's for these scores, computed in a separate environment (NumPy
# 1.26, SciPy 1.11, arch 7.2) after `np.random.seed(0)`: get_interval_estimates of aggregate_iqm with 5000
# resamples and of probability_of_improvement with 300, and create_performance_profile with 500.


def test_bootstrap_interval_of_published_scores_matches_rliable(atari):
    scores, games = atari
    estimate = aggregate.bootstrap(scores, games)
    assert estimate.value == pytest.approx(0.6407874597037997)
    assert estimate.low == pytest.approx(0.5782, abs=0.006)
    assert estimate.high == pytest.approx(0.7075, abs=0.006)


def test_probability_of_improvement_of_published_scores_matches_rliable(atari):
    """The other arm has 0.9 times the scores, and 0.5 times those of each game's first run."""
    scores, games = atari
    others = 0.9 * scores
    others[:26] = 0.5 * scores[:26]
    estimate = aggregate.probability_of_improvement(scores, others, games, games)
    assert estimate.value == pytest.approx(0.7276923076923077)
    assert estimate.low == pytest.approx(0.664, abs=0.015)
    assert estimate.high == pytest.approx(0.791, abs=0.015)


def test_performance_profile_of_published_scores_matches_rliable(atari):
    scores, games = atari
    thresholds = np.array([0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0])
    estimate = aggregate.performance_profile(scores, thresholds, games)
    np.testing.assert_allclose(130 * estimate.value, [126, 92, 75, 60, 55, 32, 15])
    low = [0.946, 0.669, 0.554, 0.446, 0.400, 0.223, 0.092]
    high = [0.992, 0.738, 0.600, 0.477, 0.446, 0.269, 0.138]
    np.testing.assert_allclose(estimate.low, low, atol=0.012)
    np.testing.assert_allclose(estimate.high, high, atol=0.012)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 20, 21])
def test_iqm_matches_scipys_trimmed_mean(n: int):
    values = np.random.default_rng(n).normal(size=(n, 3))
    expected = scipy.stats.trim_mean(values, 0.25, axis=0)
    np.testing.assert_allclose(aggregate.iqm(values, 0), expected)


def test_iqm_of_eight_values_is_the_mean_of_the_middle_four():
    assert aggregate.iqm(np.array([100, 1, 2, 3, 4, 5, -50, 6], float)) == 3.5


def test_bootstrap_interval_matches_the_enumeration_of_all_resamples():
    """Three values have 27 resamples. None of the percentiles is near a step of their distribution."""
    values = np.array([0.0, 1.0, 5.0])
    means = [np.mean(draw) for draw in product(values, repeat=3)]
    estimate = aggregate.bootstrap(values, repetitions=20_000)
    low, high = np.quantile(np.repeat(means, 100), [0.025, 0.975])
    assert (estimate.low, estimate.high) == (pytest.approx(low), pytest.approx(high))


def test_bootstrap_interval_matches_scipys_percentile_bootstrap():
    values = np.random.default_rng(1).exponential(size=12)
    theirs = scipy.stats.bootstrap(
        (values,),
        lambda x, axis: scipy.stats.trim_mean(x, 0.25, axis=axis),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(3),
    ).confidence_interval
    ours = aggregate.bootstrap(values, repetitions=20_000)
    assert ours.low == pytest.approx(theirs.low, abs=0.06)
    assert ours.high == pytest.approx(theirs.high, abs=0.06)


def test_bootstrap_resamples_within_each_environment():
    values = np.array([1.0, 1.0, 1.0, 9.0, 9.0])
    estimate = aggregate.bootstrap(values, np.array(["a", "a", "a", "b", "b"]))
    assert estimate.low == estimate.high == estimate.value
    assert aggregate.bootstrap(values).high > estimate.high


def test_bootstrap_of_curves_uses_the_same_draws_at_each_point():
    """At each point, the interval equals that of the point alone."""
    values = np.random.default_rng(2).normal(size=(5, 4))
    full = aggregate.bootstrap(values, seed=7)
    for point in range(4):
        alone = aggregate.bootstrap(values[:, point], seed=7)
        assert (full.low[point], full.high[point]) == (alone.low, alone.high)


def test_bootstrap_of_one_run_has_no_interval():
    estimate = aggregate.bootstrap(np.array([3.0]))
    assert estimate.value == 3.0 and np.isnan(estimate.low) and np.isnan(estimate.high)


def test_bootstrap_with_the_same_seed_is_identical():
    values = np.random.default_rng(0).normal(size=9)
    first, second = aggregate.bootstrap(values, seed=4), aggregate.bootstrap(values, seed=4)
    assert (first.low, first.high) == (second.low, second.high)
    assert aggregate.bootstrap(values, seed=5).low != first.low


def test_bootstrap_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).normal(size=(6, 3))
    full = aggregate.bootstrap(values)
    monkeypatch.setattr(aggregate, "CHUNK_VALUES", 100)
    np.testing.assert_array_equal(aggregate.bootstrap(values).low, full.low)


def test_permutation_p_matches_enumeration_and_scipy():
    rng = np.random.default_rng(5)
    first, second = rng.normal(1, 1, 5), rng.normal(0, 1, 4)
    expected = scipy.stats.permutation_test(
        (first, second), lambda a, b: np.mean(a) - np.mean(b), alternative="two-sided"
    ).pvalue
    # SciPy doubles the smaller tail; ours counts differences with an equal or larger absolute value.
    differences = []
    pooled = np.concatenate([first, second])
    for chosen in combinations(range(9), 5):
        rest = [i for i in range(9) if i not in chosen]
        differences.append(abs(pooled[list(chosen)].mean() - pooled[rest].mean()))
    expected_p = np.mean(np.array(differences) >= abs(first.mean() - second.mean()) - 1e-12)
    p = aggregate.permutation_p(first, second)
    assert p == expected_p
    assert p == pytest.approx(expected, abs=0.05)


def test_permutation_p_of_five_against_five_is_at_least_2_in_252():
    assert aggregate.permutation_p(np.arange(5) + 10.0, np.arange(5.0)) == 2 / 252


def test_permutation_p_of_equal_arms_is_one():
    assert aggregate.permutation_p(np.ones(4), np.ones(4)) == 1


def test_permutation_p_ignores_differences_between_environments():
    """Environment b is worth 100 more; the arms do the same in each."""
    values = np.array([0.0, 1.0, 2.0, 100.0, 101.0, 102.0])
    envs = np.array(["a"] * 3 + ["b"] * 3)
    assert aggregate.permutation_p(values, values[::-1], envs, envs[::-1]) == 1
    # Two against one: without strata the arm with more of b would look better.
    assert aggregate.permutation_p(values[1:], values[:5], envs[1:], envs[:5]) > 0.3


def test_holm_adjusts_the_smallest_p_most():
    np.testing.assert_allclose(aggregate.holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    assert aggregate.holm(np.array([0.6, 0.9])).max() == 1


def test_probability_of_improvement_is_the_mean_mann_whitney_statistic():
    rng = np.random.default_rng(6)
    first, second = rng.integers(0, 5, 8).astype(float), rng.integers(0, 5, 6).astype(float)
    envs, others = np.repeat([0, 1], [5, 3]), np.repeat([0, 1], [2, 4])
    expected = np.mean(
        [
            scipy.stats.mannwhitneyu(first[envs == e], second[others == e]).statistic
            / ((envs == e).sum() * (others == e).sum())
            for e in (0, 1)
        ]
    )
    estimate = aggregate.probability_of_improvement(first, second, envs, others)
    assert estimate.value == pytest.approx(expected)
    assert estimate.low < expected < estimate.high


def test_paired_difference_is_the_mean_over_seeds():
    estimate = aggregate.paired_difference(np.array([3.0, 5.0, 9.0]), np.array([1.0, 1.0, 3.0]))
    assert estimate.value == 4.0 and estimate.n == 3
    assert 2.0 <= estimate.low < 4.0 < estimate.high <= 6.0


def test_performance_profile_counts_runs_above_each_threshold():
    estimate = aggregate.performance_profile(
        np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.5, 4.0])
    )
    np.testing.assert_array_equal(estimate.value, [1.0, 0.75, 0.5, 0.0])


def test_interpolate_is_nan_outside_the_curve():
    x, y = np.array([10.0, 20.0, 40.0]), np.array([1.0, 3.0, 7.0])
    np.testing.assert_array_equal(
        aggregate.interpolate(x, y, np.array([5.0, 10.0, 15.0, 30.0, 41.0])),
        [np.nan, 1, 2, 5, np.nan],
    )


def test_normalize_scales_scores_between_their_bounds():
    assert aggregate.normalize(np.array([-500.0, -250.0]), -500, 0).tolist() == [0.0, 0.5]
