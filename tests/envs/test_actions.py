"""Test that vectors decode to native actions and that random vectors fill the action space."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from refusals import refused

from llmdreamer.envs import VectorEnv
from llmdreamer.envs.actions import action_encoding
from llmdreamer.utils.errors import ConfigError


def vector(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def test_box_actions_are_scaled_and_clipped_to_the_bounds():
    actions = action_encoding(
        spaces.Box(np.array([0.0, -3.0]), np.array([1.0, 5.0]), dtype=np.float64)
    )
    assert (actions.size, actions.discrete) == (2, False)
    np.testing.assert_allclose(actions.decode(vector(-1.0, -1.0)), [0.0, -3.0])
    np.testing.assert_allclose(actions.decode(vector(0.0, 0.5)), [0.5, 3.0])
    np.testing.assert_allclose(actions.decode(vector(7.0, -7.0)), [1.0, -3.0])
    assert actions.decode(vector(0.0, 0.0)).dtype == np.float64


def test_box_actions_of_any_shape_keep_order_and_bounds():
    space = spaces.Box(-0.1, 0.7, (2, 2), np.float32)
    actions = action_encoding(space)
    action = actions.decode(vector(-1, 1, 0, 2))
    np.testing.assert_allclose(action, [[-0.1, 0.7], [0.3, 0.7]], rtol=1e-6)
    assert space.contains(action)


def test_random_box_actions_are_uniform():
    actions = action_encoding(spaces.Box(-2.0, 2.0, (3,)))
    sampled = actions.sample(np.random.default_rng(0), 4000)
    assert (
        sampled.shape == (4000, 3) and sampled.dtype == np.float32 and (np.abs(sampled) <= 1).all()
    )
    # U(-1, 1) has mean 0 and variance 1/3
    np.testing.assert_allclose(sampled.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(sampled.var(0), 1 / 3, atol=0.02)


def test_multi_discrete_actions_are_one_hot_side_by_side():
    actions = action_encoding(spaces.MultiDiscrete([2, 3], start=[10, -1]))
    assert (actions.size, actions.discrete, actions.groups) == (5, True, (2, 3))
    assert actions.decode(vector(0, 1, 0, 0, 1)).tolist() == [11, 1]
    sampled = actions.sample(np.random.default_rng(0), 200)
    assert (sampled[:, :2].sum(1) == 1).all() and (sampled[:, 2:].sum(1) == 1).all()
    assert (sampled.mean(0) > 0.2).all()


def test_multi_discrete_actions_of_two_dimensions_keep_their_shape():
    actions = action_encoding(spaces.MultiDiscrete([[2, 3], [2, 2]]))
    assert actions.groups == (2, 3, 2, 2)
    assert actions.decode(vector(0, 1, 0, 0, 1, 1, 0, 0, 1)).tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_multi_binary_actions_are_pairs_of_choices(shape):
    actions = action_encoding(spaces.MultiBinary(shape))
    assert (actions.size, actions.discrete, actions.groups) == (4, True, (2, 2))
    action = actions.decode(vector(0, 1, 1, 0))
    assert action.ravel().tolist() == [1, 0] and spaces.MultiBinary(shape).contains(action)


@pytest.mark.parametrize(
    ("space", "groups"),
    [
        (spaces.Box(0, 9, (2,), np.int64), (10, 10)),
        (spaces.Box(-3, 1, (1, 2), np.int32), (5, 5)),
        (spaces.Box(-128, 127, (1,), np.int8), (256,)),
        (spaces.Box(0, 255, (1,), np.uint8), (256,)),
        (spaces.Box(np.array([5, -1]), np.array([5, 1]), dtype=np.int16), (1, 3)),
        (spaces.Box(2**63, 2**63 + 1, (1,), np.uint64), (2,)),
        (spaces.Box(4, 5, (), np.int64), (2,)),
        (spaces.Box(0, 1, (2,), np.bool_), (2, 2)),
    ],
    ids=str,
)
def test_integer_box_actions_are_choices_from_low_to_high(space, groups):
    actions = action_encoding(space)
    assert (actions.discrete, actions.groups) == (True, groups)
    lows = np.concatenate([np.eye(size)[0] for size in groups]).astype(np.float32)
    highs = np.concatenate([np.eye(size)[-1] for size in groups]).astype(np.float32)
    for chosen, bound in ((lows, space.low), (highs, space.high)):
        action = actions.decode(chosen)
        assert (action == bound).all() and space.contains(action)


def test_wide_integer_box_actions_are_rounded_numbers():
    space = spaces.Box(-1000, 2000, (2,), np.int32)
    actions = action_encoding(space)
    assert not actions.discrete and actions.size == 2
    action = actions.decode(vector(-1.0, 0.0005))
    assert action.tolist() == [-1000, 501] and space.contains(action)


UNBOUNDED = [
    spaces.Box(-np.inf, np.inf, (1,)),
    spaces.Box(-1.0, np.inf, (2,)),
    spaces.Box(-np.inf, 1.0, (2,), np.float64),
    spaces.Box(np.array([-1, -np.inf], np.float32), np.array([1, 1], np.float32)),
    spaces.Box(-3.4e38, 3.4e38, (2, 2)),
    spaces.Box(0, 3.4e38, (3,)),
    spaces.Box(-1.7e308, 1.7e308, (1,), np.float64),
    spaces.Box(np.iinfo(np.int32).min, 5, (2,), np.int32),
    spaces.Box(0, np.iinfo(np.uint32).max, (2,), np.uint32),
    spaces.Box(-np.inf, np.inf, (2,), np.int64),
]


class Unbounded(gym.Env):
    observation_space = spaces.Discrete(2)

    def __init__(self, action_space: spaces.Space) -> None:
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        return 0, {}

    def step(self, action):
        assert self.action_space.contains(action)
        return 0, float(np.abs(action).max()), False, False, {}


@pytest.mark.parametrize("space", UNBOUNDED, ids=str)
def test_unbounded_box_is_refused_and_the_advice_works(space: spaces.Box):
    with refused(ConfigError, "action space", "finite", "TransformAction") as caught:
        action_encoding(space)
    code = str(caught.value).partition("give it bounds with ")[2]
    # The advice is run as it is written.
    made = VectorEnv([lambda: eval(code, {"gymnasium": gym, "env": Unbounded(space)})], seed=0)
    made.reset()
    largest = np.ones((1, made.spec.action_size), np.float32)
    assert made.step(largest).reward[0] <= 1.0  # the largest number in the action


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict(a=spaces.Discrete(2)),
        spaces.Tuple([spaces.Discrete(2)]),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Text(3),
        spaces.Box(0, 1, (0,)),
    ],
    ids=str,
)
def test_action_encoding_of_unsupported_space_raises_config_error(space: spaces.Space):
    with refused(ConfigError, "action space", type(space).__name__):
        action_encoding(space)


def test_value_that_is_no_space_is_refused():
    with refused(ConfigError, "action space", "NoneType"):
        action_encoding(None)
