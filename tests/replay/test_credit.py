from __future__ import annotations

import random

import pytest
from refusals import refused

from llmdreamer.replay import ReplayCredit
from llmdreamer.utils.errors import ConfigError


def taken(credit, step, prefill=0):
    """Hand out all that is due."""
    due = credit.due(step, prefill)
    for _ in range(due):
        credit.count_update()
    return due


@pytest.mark.parametrize(
    ("ratio", "steps", "updates"),
    [
        (0.1, 30, 3),
        (1 / 3, 3, 1),
        (1 / 3, 300_000, 100_000),
        (0.7, 10, 7),
        (512, 2, 1024),
        (0, 9, 0),
    ]
    + [(2.5, 3, 7), (0.29, 100, 29), (1e-6, 10**6, 1)],
)
def test_credit_total_is_the_ratio_times_steps_rounded_down(ratio, steps, updates):
    assert ReplayCredit(ratio).due(steps, prefill=0) == updates


@pytest.mark.parametrize("ratio", [0.1, 1 / 3, 0.3, 1 / 7, 2.4])
def test_credit_total_is_independent_of_the_number_of_queries(ratio):
    rng, credit, step, total = random.Random(0), ReplayCredit(ratio), 0, 0
    while step < 10_000:
        step = min(10_000, step + rng.randrange(1, 40))
        total += taken(credit, step, prefill=40)
    assert total == ReplayCredit(ratio).due(10_000, prefill=40)
    assert total == {0.1: 996, 1 / 3: 3320, 0.3: 2988, 1 / 7: 1422, 2.4: 23904}[ratio]


def test_credit_allows_no_update_during_prefill():
    credit = ReplayCredit(1.0)
    assert [taken(credit, step, prefill=3) for step in range(1, 7)] == [0, 0, 0, 1, 1, 1]


def test_restored_credit_continues_without_repeat_or_loss():
    first, second = ReplayCredit(0.5), ReplayCredit(0.5)
    assert taken(first, 7) == 3
    second.load_state_dict(first.state_dict())
    assert second.due(7, prefill=0) == 0
    assert second.due(8, prefill=0) == 1


def test_changed_ratio_holds_for_later_steps_only():
    first = ReplayCredit(0.5)
    assert taken(first, 109, prefill=10) == 49  # 49.5 allowed
    for ratio, following in ((1.0, [0, 1, 1, 1]), (0.5, [0, 1, 0, 1]), (0.25, [0, 0, 1, 0])):
        credit, again = ReplayCredit(ratio), ReplayCredit(ratio)
        credit.load_state_dict(first.state_dict())
        assert [taken(credit, step, prefill=10) for step in range(109, 113)] == following
        again.load_state_dict(credit.state_dict())
        for restored in (credit, again):
            assert restored.total(1109, prefill=10) == int(49.5 + 1000 * ratio)


def test_changed_ratio_keeps_updates_due_before():
    first = ReplayCredit(2.0)
    assert first.due(10, prefill=0) == 20
    for _ in range(5):
        first.count_update()
    second = ReplayCredit(0.5)
    second.load_state_dict(first.state_dict())
    assert (second.due(10, prefill=0), second.due(12, prefill=0)) == (15, 16)


def test_uncounted_updates_stay_due():
    credit = ReplayCredit(2.0)
    assert credit.due(3, prefill=0) == credit.due(3, prefill=0) == 6
    credit.count_update()
    assert (credit.due(3, prefill=0), credit.due(4, prefill=0)) == (5, 7)


@pytest.mark.parametrize("ratio", [-1, float("nan"), float("inf"), 1e-9])
def test_invalid_ratio_is_refused(ratio):
    with refused(ConfigError, f"replay_ratio={ratio}"):
        ReplayCredit(ratio)
