"""Predictions of an agent beside the truth: the truth is checked by hand and by other routes."""

import numpy as np
import pytest
import torch

from llmdreamer.agent.agent import make_agent
from llmdreamer.analysis.diagnosis import advantages, ends, values
from llmdreamer.envs import make_vector
from llmdreamer.evaluation.diagnosis import (
    ActionValues,
    Advantage,
    Track,
    Visits,
    diagnose,
    true_returns,
)
from llmdreamer.evaluation.lanes import Lanes, repeat_step

torch.set_num_threads(1)
RIGHT = np.array([[0.0, 1.0]], np.float32)


@pytest.fixture(scope="module")
def config(compose):
    return compose("backbone=gru", "algo.dense_units=16", "algo.horizon=3")


@pytest.fixture(scope="module")
def agent(config):
    torch.manual_seed(0)
    envs = make_vector(config.env, 1, 0)
    envs.close()
    return make_agent(config, envs.spec).train()


@pytest.fixture(scope="module")
def diagnosis(agent, config):
    return diagnose(agent, config, episodes=3, states=4, branches=5, seed=7)


def test_true_return_of_a_terminated_episode_is_the_discounted_sum():
    reward, value = np.array([9.0, 1.0, 2.0, 4.0]), np.full(4, 100.0)
    ended = np.array([False, False, False, True])
    assert true_returns(reward, value, ended, 0.5).tolist() == [1 + 1 + 1, 2 + 2, 4, 0]


def test_true_return_of_a_truncated_episode_is_bootstrapped():
    reward, value = np.array([0.0, 1.0]), np.array([0.0, 100.0])
    assert true_returns(reward, value, np.zeros(2, np.bool_), 0.5).tolist() == [51.0, 100.0]


def test_lane_that_is_over_stays_at_its_last_time_step(config):
    lanes = Lanes(config.env, 2, seed=0)
    lanes.reset()
    lengths = np.zeros(2, int)
    while not lanes.over.all():
        before = lanes.over.copy()
        step = lanes.step(RIGHT.repeat(2, 0))
        assert (lanes.fresh == ~before).all()
        lengths += lanes.fresh
    last = lanes.step(RIGHT.repeat(2, 0))
    lanes.close()
    assert (last.observations["state"] == step.observations["state"]).all()
    assert not lanes.fresh.any() and last.terminated.all() and (lengths < 15).all()


def test_lanes_restored_from_a_snapshot_all_continue_as_it_did(config):
    single, several = Lanes(config.env, 1, seed=0), Lanes(config.env, 3, seed=50)
    single.reset(), several.reset()
    at = single.step(RIGHT)
    snapshot = single.snapshot()
    assert snapshot is not None
    expected = repeat_step(single.step(RIGHT), 3)
    several.restore(snapshot, at)
    step = several.step(RIGHT.repeat(3, 0))
    single.close(), several.close()
    assert (step.observations["state"] == expected.observations["state"]).all()


def test_random_action_differs_from_the_given_one(config):
    lanes, rng = Lanes(config.env, 1, seed=0), np.random.default_rng(0)
    lanes.reset()
    assert all((lanes.random_action(rng, RIGHT) == [[1, 0]]).all() for _ in range(10))
    lanes.close()


def test_track_of_one_lane_ends_with_its_episode():
    fresh = np.array([[True, True], [True, False]])
    numbers = np.arange(4.0).reshape(2, 2)
    track = Track(numbers, numbers, numbers, ~fresh, fresh)
    assert track.lane(0).reward.tolist() == [0, 2] and track.lane(1).reward.tolist() == [1]


def test_visits_hold_whole_episodes_with_their_true_returns(diagnosis, config):
    visits = diagnosis.visits
    assert visits.terminated.sum() == 3 and visits.terminated[-1]
    lengths = np.diff(np.flatnonzero(np.append(True, visits.terminated)))
    gamma = config.algo.gamma
    expected = [sum(gamma**k for k in range(n - 1 - t)) for n in lengths for t in range(n)]
    np.testing.assert_allclose(visits.true_return, expected)
    assert ((visits.continue_prob > 0) & (visits.continue_prob < 1)).all()


def test_advantages_are_of_distinct_states_with_all_branches(diagnosis):
    results = diagnosis.advantages
    assert results[0].step == 0 and len({a.step for a in results}) == len(results)
    for advantage in results:
        for side in (advantage.mode, advantage.other):
            assert side.true.shape == side.imagined.shape == (5,)
            assert (side.true >= 1).all() and np.isfinite(side.imagined).all()


def test_last_state_before_a_fall_is_worth_one_step(diagnosis):
    """The episode fell after the action taken there; the action that falls is worth its one reward."""
    last = diagnosis.advantages[-1]
    assert 1.0 in (last.mode.true.min(), last.other.true.min())


def test_same_seed_gives_the_same_diagnosis_and_leaves_training_alone(agent, config, diagnosis):
    before = torch.get_rng_state()
    again = diagnose(agent, config, episodes=3, states=4, branches=5, seed=7)
    assert agent.training and torch.equal(before, torch.get_rng_state())
    np.testing.assert_array_equal(again.visits.value, diagnosis.visits.value)
    for a, b in zip(again.advantages, diagnosis.advantages, strict=True):
        np.testing.assert_array_equal(a.mode.true, b.mode.true)
        np.testing.assert_array_equal(a.other.imagined, b.other.imagined)


def test_environment_without_snapshots_has_no_advantages(agent, config, monkeypatch):
    monkeypatch.setattr(Lanes, "snapshot", lambda self: None)
    result = diagnose(agent, config, episodes=1, states=2, branches=2, seed=0)
    assert result.advantages == [] and not advantages(result.advantages).tables


def test_table_of_ends_separates_terminated_steps():
    visits = Visits(
        np.array([5.0, 3.0, 1.0]),
        np.array([4.0, 2.0, 0.0]),
        np.array([0.9, 0.8, 0.25]),
        np.array([False, False, True]),
    )
    (table,) = ends(visits).tables
    assert table["P(continue)"].tolist() == [0.25, 0.85] and table["critic"].tolist() == [1, 4]


def test_table_of_values_groups_steps_by_true_return():
    truth = np.arange(16.0)[::-1]
    (table,) = values(Visits(truth + 2, truth, truth, truth < 0)).tables
    assert table["true return"].tolist() == [0.5 + 2 * k for k in range(8)]
    assert (table["critic"] - table["true return"]).tolist() == [2.0] * 8


def test_advantages_count_the_states_whose_signs_agree():
    def state(true, imagined):
        zero = np.array([-0.1, 0.1])
        return Advantage(
            0, 0.0, ActionValues(zero + true, zero + imagined), ActionValues(zero, zero)
        )

    section = advantages([state(5, 1), state(5, -1), state(0, 1)])
    assert "in 2 of 3 states" in section.text[0] and "in 1 of these" in section.text[0]
