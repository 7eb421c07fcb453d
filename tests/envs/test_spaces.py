"""A space that was kept as data is the space it was."""

import json

import numpy as np
import pytest
from gymnasium import spaces
from refusals import refused

from llmdreamer.envs.spaces import space_from_plain, space_to_plain
from llmdreamer.utils.errors import ConfigError

KEPT = {
    "vector": spaces.Box(
        np.array([-1.5, -np.inf], np.float32), np.array([2.0, np.inf], np.float32)
    ),
    "image": spaces.Box(0, 255, (64, 48, 3), np.uint8),
    "scalar": spaces.Box(-1.0, 1.0, (), np.float64),
    "choice": spaces.Discrete(4, start=-1),
    "choices": spaces.MultiDiscrete([2, 3], start=[0, 1]),
    "words": spaces.Text(20),
    "several": spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Box(0.0, 1.0, (3,))}),
}


@pytest.mark.parametrize("name", KEPT)
def test_a_space_comes_back_from_json(name):
    space = KEPT[name]
    found = space_from_plain(json.loads(json.dumps(space_to_plain(space))))
    assert found == space and found.dtype == space.dtype


def test_the_keys_keep_their_order():
    space = KEPT["several"]
    assert list(space_from_plain(space_to_plain(space)).spaces) == list(space.spaces)


def test_the_bounds_of_a_picture_are_told_once():
    assert len(json.dumps(space_to_plain(KEPT["image"]))) < 100


def test_other_spaces_are_refused_by_name():
    with refused(ConfigError, "MultiBinary"):
        space_to_plain(spaces.MultiBinary(3))
