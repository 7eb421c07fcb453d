"""The statistics against published example numbers, SciPy, and enumeration by hand."""

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


def test_iqm_of_rliables_examples():
    assert aggregate.iqm(X.ravel()) == 1.5
    assert aggregate.iqm(Y.ravel()) == 2


def test_probability_of_improvement_of_rliables_example():
    found = aggregate.improvement(X.ravel(), Y.ravel(), TASKS_X, TASKS_Y)
    assert found.value == pytest.approx(1 / 3)


@pytest.fixture(scope="module")
def atari() -> tuple[np.ndarray, np.ndarray]:
    """Human-normalised scores of 26 games x 5 runs, and the game of each."""
    table = pd.read_csv(Path(__file__).parent / "data" / "diamond_atari_100k.csv")
    runs = table.filter(like="run_").to_numpy().T
    scores = aggregate.normalise(runs, table["random"].to_numpy(), table["human"].to_numpy())
    return scores.ravel(), np.tile(table["game"].to_numpy(), len(runs))


def test_published_scores_have_the_published_interquartile_mean(atari):
    """arXiv:2405.12399, table 1: 0.641, and a mean of 1.459."""
    scores, _ = atari
    assert round(float(aggregate.iqm(scores)), 3) == 0.641
    assert round(float(scores.mean()), 3) == 1.459


# Below, what rliable 1.2.0 itself finds in these scores (in an environment of its own: NumPy 1.26, SciPy
# 1.11, arch 7.2; `np.random.seed(0)`, then get_interval_estimates of aggregate_iqm with 5000 resamples, of
# probability_of_improvement with 300, and create_performance_profile with 500).


def test_the_interval_of_published_scores_is_rliables(atari):
    scores, games = atari
    found = aggregate.bootstrap(scores, games)
    assert found.value == pytest.approx(0.6407874597037997)
    assert found.low == pytest.approx(0.5782, abs=0.006)
    assert found.high == pytest.approx(0.7075, abs=0.006)


def test_the_improvement_of_published_scores_is_rliables(atari):
    """Over their own 0.9, and half of each game's first run."""
    scores, games = atari
    others = 0.9 * scores
    others[:26] = 0.5 * scores[:26]
    found = aggregate.improvement(scores, others, games, games)
    assert found.value == pytest.approx(0.7276923076923077)
    assert found.low == pytest.approx(0.664, abs=0.015)
    assert found.high == pytest.approx(0.791, abs=0.015)


def test_the_profile_of_published_scores_is_rliables(atari):
    scores, games = atari
    thresholds = np.array([0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0])
    found = aggregate.profile(scores, thresholds, games)
    np.testing.assert_allclose(130 * found.value, [126, 92, 75, 60, 55, 32, 15])
    low = [0.946, 0.669, 0.554, 0.446, 0.400, 0.223, 0.092]
    high = [0.992, 0.738, 0.600, 0.477, 0.446, 0.269, 0.138]
    np.testing.assert_allclose(found.low, low, atol=0.012)
    np.testing.assert_allclose(found.high, high, atol=0.012)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 20, 21])
def test_iqm_is_a_trimmed_mean(n: int):
    values = np.random.default_rng(n).normal(size=(n, 3))
    expected = scipy.stats.trim_mean(values, 0.25, axis=0)
    np.testing.assert_allclose(aggregate.iqm(values, 0), expected)


def test_iqm_of_eight_is_the_mean_of_the_middle_four():
    assert aggregate.iqm(np.array([100, 1, 2, 3, 4, 5, -50, 6], float)) == 3.5


def test_the_interval_is_that_of_all_resamples():
    """3 values have 27 resamples; percentiles of their means, none of which is near a jump."""
    values = np.array([0.0, 1.0, 5.0])
    means = [np.mean(draw) for draw in product(values, repeat=3)]
    found = aggregate.bootstrap(values, repetitions=20_000)
    low, high = np.quantile(np.repeat(means, 100), [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_the_interval_agrees_with_scipys_percentile_bootstrap():
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


def test_environments_are_never_mixed_by_resampling():
    values = np.array([1.0, 1.0, 1.0, 9.0, 9.0])
    found = aggregate.bootstrap(values, np.array(["a", "a", "a", "b", "b"]))
    assert found.low == found.high == found.value
    assert aggregate.bootstrap(values).high > found.high


def test_a_curve_is_resampled_run_by_run():
    """At each point of the curve the interval is that of the point alone, from the same draws."""
    values = np.random.default_rng(2).normal(size=(5, 4))
    whole = aggregate.bootstrap(values, seed=7)
    for point in range(4):
        alone = aggregate.bootstrap(values[:, point], seed=7)
        assert (whole.low[point], whole.high[point]) == (alone.low, alone.high)


def test_one_run_has_no_interval():
    found = aggregate.bootstrap(np.array([3.0]))
    assert found.value == 3.0 and np.isnan(found.low) and np.isnan(found.high)


def test_a_seed_repeats_every_digit():
    values = np.random.default_rng(0).normal(size=9)
    first, second = aggregate.bootstrap(values, seed=4), aggregate.bootstrap(values, seed=4)
    assert (first.low, first.high) == (second.low, second.high)
    assert aggregate.bootstrap(values, seed=5).low != first.low


def test_chunks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).normal(size=(6, 3))
    whole = aggregate.bootstrap(values)
    monkeypatch.setattr(aggregate, "_CELLS", 100)
    np.testing.assert_array_equal(aggregate.bootstrap(values).low, whole.low)


def test_permutation_p_is_scipys():
    rng = np.random.default_rng(5)
    one, two = rng.normal(1, 1, 5), rng.normal(0, 1, 4)
    expected = scipy.stats.permutation_test(
        (one, two), lambda a, b: np.mean(a) - np.mean(b), alternative="two-sided"
    ).pvalue
    # SciPy doubles the smaller tail; ours counts differences as large in size.
    differences = []
    pooled = np.concatenate([one, two])
    for chosen in combinations(range(9), 5):
        rest = [i for i in range(9) if i not in chosen]
        differences.append(abs(pooled[list(chosen)].mean() - pooled[rest].mean()))
    by_hand = np.mean(np.array(differences) >= abs(one.mean() - two.mean()) - 1e-12)
    found = aggregate.permutation_p(one, two)
    assert found == by_hand
    assert found == pytest.approx(expected, abs=0.05)


def test_the_smallest_p_of_five_against_five():
    assert aggregate.permutation_p(np.arange(5) + 10.0, np.arange(5.0)) == 2 / 252


def test_equal_arms_have_p_one():
    assert aggregate.permutation_p(np.ones(4), np.ones(4)) == 1


def test_a_difference_between_environments_is_not_one_between_arms():
    """Environment b is worth 100 more; the arms do the same in each."""
    values = np.array([0.0, 1.0, 2.0, 100.0, 101.0, 102.0])
    envs = np.array(["a"] * 3 + ["b"] * 3)
    assert aggregate.permutation_p(values, values[::-1], envs, envs[::-1]) == 1
    # Two against one: without strata the arm with more of b would look better.
    assert aggregate.permutation_p(values[1:], values[:5], envs[1:], envs[:5]) > 0.3


def test_holm_multiplies_the_smallest_most():
    np.testing.assert_allclose(aggregate.holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    assert aggregate.holm(np.array([0.6, 0.9])).max() == 1


def test_improvement_is_the_mann_whitney_statistic_averaged_over_environments():
    rng = np.random.default_rng(6)
    one, two = rng.integers(0, 5, 8).astype(float), rng.integers(0, 5, 6).astype(float)
    envs, others = np.repeat([0, 1], [5, 3]), np.repeat([0, 1], [2, 4])
    expected = np.mean(
        [
            scipy.stats.mannwhitneyu(one[envs == e], two[others == e]).statistic
            / ((envs == e).sum() * (others == e).sum())
            for e in (0, 1)
        ]
    )
    found = aggregate.improvement(one, two, envs, others)
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high


def test_paired_differences_are_those_of_each_seed():
    found = aggregate.paired_difference(np.array([3.0, 5.0, 9.0]), np.array([1.0, 1.0, 3.0]))
    assert found.value == 4.0 and found.n == 3
    assert 2.0 <= found.low < 4.0 < found.high <= 6.0


def test_a_profile_counts_runs_above_each_threshold():
    found = aggregate.profile(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 2.5, 4.0]))
    np.testing.assert_array_equal(found.value, [1.0, 0.75, 0.5, 0.0])


def test_a_curve_says_nothing_before_its_first_and_after_its_last_point():
    x, y = np.array([10.0, 20.0, 40.0]), np.array([1.0, 3.0, 7.0])
    np.testing.assert_array_equal(
        aggregate.on_grid(x, y, np.array([5.0, 10.0, 15.0, 30.0, 41.0])), [np.nan, 1, 2, 5, np.nan]
    )
    assert [aggregate.at_budget(x, y, b) for b in (10, 39, 99)] == [1, 3, 7]
    assert np.isnan(aggregate.at_budget(x, y, 9))


def test_scores_are_normalised_between_their_bounds():
    assert aggregate.normalise(np.array([-500.0, -250.0]), -500, 0).tolist() == [0.0, 0.5]
