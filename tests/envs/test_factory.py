from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from refusals import refused
from toys import action, make

from llmdreamer.config import EnvConfig
from llmdreamer.envs import EnvError, make_vector
from llmdreamer.utils.errors import ConfigError


def assert_refused(env_id: str, *parts: str, **changes: Any) -> None:
    with refused(ConfigError, *parts):
        make(env_id, **changes)


def test_unknown_env_id_suggests_the_nearest():
    assert_refused("CartPol-v1", "env.id=CartPol-v1", "'CartPole-v1'")
    assert_refused("CartPole-v9", "env.id=CartPole-v9", "'CartPole-v1'")
    assert_refused("toys:ToyCuont-v0", "env.id=toys:ToyCuont-v0", "'ToyCount-v0'")


def test_unknown_namespace_names_the_missing_package():
    assert_refused("NoSuchSuite/Pong-v5", "env.id=NoSuchSuite/Pong-v5", "package", "'NoSuchSuite'")


def test_missing_module_or_dependency_names_what_to_install():
    assert_refused("nosuchmodule:X-v0", "env.id=nosuchmodule:X-v0", "package", "'nosuchmodule'")
    assert_refused("toys:ToyNeedy-v0", "env.id=toys:ToyNeedy-v0", 'pip install "toy[sim]"')


def test_invalid_env_kwargs_are_named():
    assert_refused("CartPole-v1", "env.kwargs=", "'colour'", colour="red")
    assert_refused("CartPole-v1", "env.max_episode_steps=0", limit=0)


def test_module_prefix_and_kwargs_reach_the_constructor():
    envs = make("toys:ToyCount-v0", end=2)
    envs.reset()
    assert [envs.step(action(0)).terminated[0] for _ in range(2)] == [False, True]


def test_action_repeat_sums_rewards_and_stops_at_episode_end():
    envs = make("ToyCount-v0", repeat=3, end=5)
    envs.reset()
    time_steps = [envs.step(action(1)), envs.step(action(1))]
    assert [step.reward[0] for step in time_steps] == [1 + 2 + 3, 4 + 5]
    assert [step.observations["state"][0, 0] for step in time_steps] == [3.0, 5.0]
    assert [step.terminated[0] for step in time_steps] == [False, True]
    assert envs.spec.action_repeat == 3


def test_time_limit_counts_environment_steps_under_action_repeat():
    envs = make("ToyCount-v0", repeat=2, limit=4, end=99)
    envs.reset()
    assert [envs.step(action(0)).truncated[0] for _ in range(2)] == [False, True]


@pytest.mark.parametrize(
    "space", [spaces.Sequence(spaces.Discrete(2)), spaces.OneOf([spaces.Discrete(2)])]
)
def test_unsupported_observation_space_lists_the_supported(space: spaces.Space):
    parts = ("observation space", type(space).__name__, "Text", "Dict")
    assert_refused("ToyShow-v0", *parts, space=space)
    assert_refused("ToyShow-v0", *parts, "'a'", space=spaces.Dict(a=space))


@pytest.mark.parametrize(
    "space", [spaces.Dict(a=spaces.Discrete(2)), spaces.Tuple([spaces.Discrete(2)])]
)
def test_unsupported_action_space_lists_the_supported(space: spaces.Space):
    parts = ("action space", type(space).__name__, "Discrete, MultiDiscrete", "Box")
    assert_refused("ToyShow-v0", *parts, space=spaces.Discrete(2), actions=space)


def test_unbounded_action_box_raises_config_error():
    box = spaces.Box(-np.inf, 1.0, (2,))
    parts = ("action space", "Box", "finite", "TransformAction")
    assert_refused("ToyShow-v0", *parts, space=spaces.Discrete(2), actions=box)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (0,)),
        spaces.Box(0, 255, (0, 4, 3), np.uint8),
        spaces.Dict(a=spaces.Box(0, 1, (2, 0))),
        spaces.Dict(),
        spaces.Tuple([]),
    ],
    ids=str,
)
def test_observation_without_numbers_is_refused(space: spaces.Space):
    assert_refused("ToyShow-v0", "observation space", space=space)


@pytest.mark.parametrize("space", [spaces.Discrete(2**17), spaces.MultiDiscrete([2**16, 2])])
def test_one_hot_space_of_too_many_values_is_refused(space: spaces.Space):
    assert_refused("ToyShow-v0", "observation space", "65536", space=space)
    assert_refused("ToyShow-v0", "action space", "65536", space=spaces.Discrete(2), actions=space)


def test_render_without_render_option_raises_env_error():
    cfg = EnvConfig(id="CartPole-v1", num_envs=1, action_repeat=1)
    blind, rendered = make_vector(cfg, 1, 0), make_vector(cfg, 1, 0, render=True)
    blind.reset()
    rendered.reset()
    with refused(EnvError, "render"):
        blind.render()
    image = rendered.render()
    assert image.shape == (400, 600, 3) and image.dtype == np.uint8
    rendered.close()
