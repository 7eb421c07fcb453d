"""Rows of numbers become the actions that an environment takes, and random rows fill its space."""

import numpy as np
import pytest
from gymnasium import spaces
from refusals import refused

from llmdreamer.envs.actions import action_kind
from llmdreamer.utils.errors import ConfigError


def row(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def test_a_box_is_scaled_to_its_bounds_and_clipped_to_them():
    actions = action_kind(spaces.Box(np.array([0.0, -3.0]), np.array([1.0, 5.0]), dtype=np.float64))
    assert (actions.size, actions.discrete) == (2, False)
    np.testing.assert_allclose(actions.decode(row(-1.0, -1.0)), [0.0, -3.0])
    np.testing.assert_allclose(actions.decode(row(0.0, 0.5)), [0.5, 3.0])
    np.testing.assert_allclose(actions.decode(row(7.0, -7.0)), [1.0, -3.0])
    assert actions.decode(row(0.0, 0.0)).dtype == np.float64


def test_a_box_of_any_shape_is_taken_in_order_and_kept_inside():
    space = spaces.Box(-0.1, 0.7, (2, 2), np.float32)
    actions = action_kind(space)
    taken = actions.decode(row(-1, 1, 0, 2))
    np.testing.assert_allclose(taken, [[-0.1, 0.7], [0.3, 0.7]], rtol=1e-6)
    assert space.contains(taken)


def test_random_rows_fill_a_box_evenly():
    actions = action_kind(spaces.Box(-2.0, 2.0, (3,)))
    drawn = actions.sample(np.random.default_rng(0), 4000)
    assert drawn.shape == (4000, 3) and drawn.dtype == np.float32 and (np.abs(drawn) <= 1).all()
    # Of U(-1, 1): mean 0 and variance 1/3
    np.testing.assert_allclose(drawn.mean(0), 0, atol=0.04)
    np.testing.assert_allclose(drawn.var(0), 1 / 3, atol=0.02)


def test_several_choices_are_one_hot_rows_side_by_side():
    actions = action_kind(spaces.MultiDiscrete([2, 3], start=[10, -1]))
    assert (actions.size, actions.discrete, actions.groups) == (5, True, (2, 3))
    assert actions.decode(row(0, 1, 0, 0, 1)).tolist() == [11, 1]
    drawn = actions.sample(np.random.default_rng(0), 200)
    assert (drawn[:, :2].sum(1) == 1).all() and (drawn[:, 2:].sum(1) == 1).all()
    assert (drawn.mean(0) > 0.2).all()


def test_a_table_of_choices_keeps_its_shape():
    actions = action_kind(spaces.MultiDiscrete([[2, 3], [2, 2]]))
    assert actions.groups == (2, 3, 2, 2)
    assert actions.decode(row(0, 1, 0, 0, 1, 1, 0, 0, 1)).tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (1,)),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.MultiBinary(2),
        spaces.Dict(a=spaces.Discrete(2)),
    ],
)
def test_any_other_space_is_refused_in_one_line(space: spaces.Space):
    with refused(ConfigError, "action space", type(space).__name__):
        action_kind(space)
