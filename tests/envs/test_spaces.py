"""Test that spaces survive conversion to JSON data and back."""

import json

import numpy as np
import pytest
from gymnasium import spaces
from refusals import refused

from llmdreamer.envs.spaces import space_from_plain, space_to_plain
from llmdreamer.utils.errors import ConfigError

SPACES = {
    "vector": spaces.Box(
        np.array([-1.5, -np.inf], np.float32), np.array([2.0, np.inf], np.float32)
    ),
    "image": spaces.Box(0, 255, (64, 48, 3), np.uint8),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float64),
    "choice": spaces.Discrete(4, start=-1),
    "choices": spaces.MultiDiscrete([2, 3], start=[0, 1]),
    "bits": spaces.MultiBinary([2, 3]),
    "words": spaces.Text(20),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Dict(a=spaces.MultiBinary(3))]),
    "numbered": spaces.Dict({2: spaces.Discrete(2), 1: spaces.Dict({True: spaces.Discrete(3)})}),
    "pairs": spaces.Dict({("left", (0, None)): spaces.Discrete(2), 1.5: spaces.Discrete(3)}),
    "several": spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(0.0, 1.0, (3,))}),
}


@pytest.mark.parametrize("name", SPACES)
def test_space_round_trips_through_json(name):
    space = SPACES[name]
    result = space_from_plain(json.loads(json.dumps(space_to_plain(space))))
    assert result == space and result.dtype == space.dtype


@pytest.mark.parametrize("name", ["several", "numbered", "pairs"])
def test_dict_space_keeps_key_order(name):
    space = SPACES[name]
    assert list(space_from_plain(space_to_plain(space)).spaces) == list(space.spaces)


def test_equal_image_bounds_are_stored_as_one_number():
    assert len(json.dumps(space_to_plain(SPACES["image"]))) < 100


def test_unsupported_space_raises_config_error():
    with refused(ConfigError, "Sequence"):
        space_to_plain(spaces.Sequence(spaces.Discrete(2)))


def test_dict_key_that_cannot_be_saved_raises_config_error():
    with refused(ConfigError, "frozenset({1})"):
        space_to_plain(spaces.Dict({frozenset({1}): spaces.Discrete(2)}))
