from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from toys import action, make

from llmdreamer.config import EnvConfig
from llmdreamer.envs import make_vector
from llmdreamer.utils.errors import ConfigError


def message(env_id: str, **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(env_id, **changes)
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_unknown_id_names_the_nearest_one():
    assert message("CartPol-v1") == (
        "env.id=CartPol-v1: no such environment; did you mean 'CartPole-v1'?"
    )
    assert "did you mean 'CartPole-v1'?" in message("CartPole-v9")
    assert "'ToyCount-v0'" in message("toys:ToyCuont-v0")


def test_unknown_namespace_asks_for_its_package():
    assert "is the package of 'NoSuchSuite' installed" in message("NoSuchSuite/Pong-v5")


def test_missing_module_or_dependency_says_what_to_install():
    assert "install the package of 'nosuchmodule'" in message("nosuchmodule:X-v0")
    assert 'run `pip install "toy[sim]"`' in message("toys:ToyNeedy-v0")


def test_refused_kwargs_are_named():
    assert "'colour'" in message("CartPole-v1", colour="red")
    assert "env.max_episode_steps=0" in message("CartPole-v1", limit=0)


def test_module_prefix_and_kwargs_reach_the_constructor():
    envs = make("toys:ToyCount-v0", end=2)
    envs.reset()
    assert [envs.step(action(0)).terminated[0] for _ in range(2)] == [False, True]


def test_action_repeat_sums_rewards_and_stops_where_the_episode_ends():
    envs = make("ToyCount-v0", repeat=3, end=5)
    envs.reset()
    rows = [envs.step(action(1)), envs.step(action(1))]
    assert [row.reward[0] for row in rows] == [1 + 2 + 3, 4 + 5]
    assert [row.observations["state"][0, 0] for row in rows] == [3.0, 5.0]
    assert [row.terminated[0] for row in rows] == [False, True]
    assert envs.spec.action_repeat == 3


def test_time_limit_counts_environment_steps_under_action_repeat():
    envs = make("ToyCount-v0", repeat=2, limit=4, end=99)
    envs.reset()
    assert [envs.step(action(0)).truncated[0] for _ in range(2)] == [False, True]


@pytest.mark.parametrize("space", [spaces.Box(0, 1, (2, 2)), spaces.MultiBinary(3)])
def test_unsupported_observation_space_tells_the_supported_ones(space: spaces.Space):
    text = message("ToyShow-v0", space=space)
    assert text.startswith("unsupported observation space ") and "Text, or a Dict" in text
    nested = message("ToyShow-v0", space=spaces.Dict(a=space))
    assert "at key 'a'" in nested


@pytest.mark.parametrize(
    "space", [spaces.Dict(a=spaces.Discrete(2)), spaces.Tuple([spaces.Discrete(2)])]
)
def test_unsupported_action_space_tells_the_supported_ones(space: spaces.Space):
    text = message("ToyShow-v0", space=spaces.Discrete(2), actions=space)
    assert text.startswith("unsupported action space ")
    assert text.endswith(
        "supported: Discrete, MultiDiscrete, and a Box of real numbers with finite bounds"
    )


def test_an_unbounded_box_of_actions_is_refused():
    text = message("ToyShow-v0", space=spaces.Discrete(2), actions=spaces.Box(-np.inf, 1.0, (2,)))
    assert "its bounds are not finite" in text and "RescaleAction" in text


def test_rendering_is_there_only_when_asked_for():
    cfg = EnvConfig(id="CartPole-v1", num_envs=1, action_repeat=1)
    plain, seen = make_vector(cfg, 1, 0), make_vector(cfg, 1, 0, render=True)
    plain.reset()
    seen.reset()
    assert plain.render() is None
    picture = seen.render()
    assert picture is not None and picture.shape == (400, 600, 3) and picture.dtype == np.uint8
    seen.close()
