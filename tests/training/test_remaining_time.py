"""The estimate of a run's remaining time."""

from types import SimpleNamespace

import pytest

from llmdreamer.training.display import duration
from llmdreamer.training.loop import Run
from llmdreamer.training.remaining_time import RemainingTime


class Clock:
    """A clock that a test sets, in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_estimate_is_unknown_before_the_first_updates():
    assert RemainingTime(Clock()).seconds(10, 1) is None
    assert duration(None) == "-"


def test_an_evaluation_does_not_count_as_time_of_updates():
    clock = Clock()
    remaining = RemainingTime(clock)
    clock.now = 1.0
    with remaining.evaluation():
        clock.now = 31.0
    clock.now = 32.0
    remaining.count_updates(4)  # 2 s for 4 updates, and 30 s for the evaluation
    assert remaining.seconds(100, 0) == pytest.approx(50.0)
    assert remaining.seconds(100, 3) == pytest.approx(50.0 + 90.0)


def test_random_steps_before_the_first_update_do_not_count():
    clock = Clock()
    remaining = RemainingTime(clock)
    clock.now = 500.0
    remaining.restart()
    clock.now = 501.0
    remaining.count_updates(2)
    assert remaining.seconds(10, 0) == pytest.approx(5.0)


def test_a_slower_machine_changes_the_estimate_step_by_step():
    clock = Clock()
    remaining = RemainingTime(clock)
    estimates = []
    for seconds in (1.0, 2.0, 2.0, 2.0):
        clock.now += seconds
        remaining.count_updates(1)
        estimates.append(remaining.seconds(1, 0))
    assert estimates == sorted(estimates)
    assert estimates[0] == pytest.approx(1.0) and 1.5 < estimates[-1] < 2.0


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 1e11])
def test_an_impossible_duration_is_shown_as_unknown(seconds):
    assert duration(seconds) == "-"


def test_a_duration_is_shown_in_hours_minutes_and_seconds():
    assert duration(3725.9) == "1:02:05"


@pytest.mark.parametrize(
    ("policy_step", "evaluations"), [(0, 3), (99, 3), (100, 2), (250, 1), (300, 1)]
)
def test_the_evaluation_at_the_last_step_counts_once(compose, policy_step, evaluations):
    clock = Clock()
    remaining = RemainingTime(clock)
    clock.now = 1.0
    remaining.count_updates(1)
    with remaining.evaluation():
        clock.now = 61.0
    run = SimpleNamespace(
        config=compose("algo.total_steps=300", "eval.every=100", "eval.keep_best=false"),
        trainer=SimpleNamespace(
            policy_step=policy_step, updates=10, optimizer=SimpleNamespace(total_updates=10)
        ),
        remaining=remaining,
    )
    assert Run._left(run) == duration(60.0 * evaluations)
