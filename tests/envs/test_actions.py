"""Test that vectors decode to native actions and that random vectors fill the action space."""

import numpy as np
import pytest
from gymnasium import spaces
from refusals import refused

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


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (1,)),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.MultiBinary(2),
        spaces.Dict(a=spaces.Discrete(2)),
    ],
)
def test_action_encoding_of_unsupported_space_raises_config_error(space: spaces.Space):
    with refused(ConfigError, "action space", type(space).__name__):
        action_encoding(space)
