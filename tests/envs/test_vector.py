from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import toys
from gymnasium import spaces
from refusals import refused
from toys import action, make

from llmdreamer.envs import EnvError, VectorEnv, VectorOptions
from llmdreamer.envs.simulator import ObservationOptions


def make_show(space: spaces.Space, value: Any) -> VectorEnv:
    options = VectorOptions(ObservationOptions(image_size=16, max_text_bytes=8))
    return VectorEnv([lambda: toys.Show(space, value)], 0, options)


def test_reset_changes_only_masked_environments():
    envs = make("ToyCount-v0", n=2, end=99)
    envs.reset()
    envs.step(action(1, n=2))
    step = envs.reset(np.array([False, True]))
    assert step.is_first.tolist() == [False, True]
    assert step.reward.tolist() == [1.0, 0.0]
    assert step.observations["state"].tolist() == [[1.0, 1.0], [0.0, -1.0]]
    assert envs.step(action(2, n=2)).observations["state"].tolist() == [[2.0, 2.0], [1.0, 2.0]]


def test_returned_time_steps_do_not_change_later():
    envs = make("ToyCount-v0", end=99)
    first = envs.reset()
    envs.step(action(1))
    assert first.observations["state"].tolist() == [[0.0, -1.0]] and first.is_first[0]


def test_step_after_episode_end_raises_assertion_error():
    envs = make("ToyCount-v0", end=1)
    envs.reset()
    assert envs.step(action(0)).terminated[0]
    with refused(AssertionError, "reset"):
        envs.step(action(0))
    envs.reset(np.array([True]))
    envs.step(action(0))


def test_fallen_pole_terminates_and_time_limit_truncates():
    envs = make("CartPole-v1", limit=500)
    envs.reset()
    steps = [envs.step(action(1, size=2)) for _ in range(8)]
    while not (steps[-1].terminated[0] or steps[-1].truncated[0]):
        steps.append(envs.step(action(1, size=2)))
    assert steps[-1].terminated[0] and not steps[-1].truncated[0]
    short = make("CartPole-v1", limit=3)
    short.reset()
    steps = [short.step(action(1, size=2)) for _ in range(3)]
    assert [step.truncated[0] for step in steps] == [False, False, True]
    assert not steps[-1].terminated[0]


def test_first_reset_is_seeded_and_later_ones_continue():
    first, second = make("CartPole-v1", n=2), make("CartPole-v1", n=2)
    a, b = first.reset().observations["state"], second.reset().observations["state"]
    np.testing.assert_array_equal(a, b)
    assert (a[0] != a[1]).any()
    later = first.reset().observations["state"]
    assert (later != a).any()
    np.testing.assert_array_equal(later, second.reset().observations["state"])


def test_environment_seed_does_not_depend_on_num_envs():
    one, three = make("CartPole-v1", n=1), make("CartPole-v1", n=3)
    np.testing.assert_array_equal(
        one.reset().observations["state"][0], three.reset().observations["state"][0]
    )


def test_discrete_actions_begin_at_the_start_of_the_space():
    envs = make("ToyCount-v0", start=-1)
    envs.reset()
    actions = [envs.step(action(index)).observations["state"][0, 1] for index in range(3)]
    assert actions == [-1.0, 0.0, 1.0]


def test_random_actions_are_one_hot_and_repeatable():
    envs = make("ToyCount-v0", n=50)
    sampled = envs.random_action(np.random.default_rng(1))
    assert sampled.shape == (50, 3) and sampled.dtype == np.float32
    assert (sampled.sum(1) == 1).all() and (sampled.sum(0) > 0).all()
    np.testing.assert_array_equal(sampled, envs.random_action(np.random.default_rng(1)))


def test_dict_observation_keeps_keys_and_image_bytes():
    image = np.arange(768).astype(np.uint8).reshape(16, 16, 3)
    space = spaces.Dict(
        camera=spaces.Box(0, 255, (16, 16, 3), np.uint8),
        speed=spaces.Box(-1, 1, (2,), np.float64),
        mode=spaces.Discrete(3, start=1),
        level=spaces.Box(0, 9, (), np.int64),
    )
    envs = make_show(
        space, {"camera": image, "speed": np.array([0.5, -1.0]), "mode": 2, "level": 7}
    )
    assert envs.spec.observations == {
        "camera": (16, 16, 3), "speed": (2,), "mode": (3,), "level": (1,)
    }  # fmt: skip
    result = envs.reset().observations
    assert result["camera"].dtype == np.uint8 and (result["camera"][0] == image).all()
    assert result["speed"].dtype == np.float32 and result["speed"].tolist() == [[0.5, -1.0]]
    assert result["mode"].tolist() == [[0.0, 1.0, 0.0]] and result["level"].tolist() == [[7.0]]


def test_discrete_observation_is_one_hot_state():
    envs = make_show(spaces.Discrete(4), 3)
    assert envs.reset().observations["state"].tolist() == [[0.0, 0.0, 0.0, 1.0]]


def test_uint8_vector_becomes_float32_vector():
    envs = make_show(spaces.Box(0, 255, (2,), np.uint8), np.array([0, 255], np.uint8))
    assert envs.reset().observations["state"].dtype == np.float32


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("nan", ["'state'", "NaN"]),
        ("reward", ["reward", "inf"]),
        ("raise", ["OSError: the simulator is gone"]),
    ],
)
def test_failed_step_names_environment_and_policy_step(fault: str, parts: list[str]):
    envs = VectorEnv([lambda: toys.Count(end=99), lambda: toys.Count(end=99, fault=fault)], seed=0)
    envs.reset()
    envs.step(action(0, n=2))
    with refused(EnvError, "environment 1", "step 2", *parts) as caught:
        envs.step(action(0, n=2))
    assert (caught.value.index, caught.value.step) == (1, 2)


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (spaces.Box(-1, 1, (2,)), np.zeros(3, np.float32)),
        (spaces.Box(-np.inf, np.inf, (1,), np.float64), np.array([1e300])),  # infinite as float32
        (spaces.Discrete(3), 3),
        (spaces.Dict(a=spaces.Discrete(3)), {"b": 1}),
    ],
)
def test_observation_outside_its_space_raises_env_error(space: spaces.Space, value: Any):
    with refused(EnvError, "environment 0", "step 0"):
        make_show(space, value).reset()


def test_gymnasium_frozen_lake_runs():
    envs = VectorEnv([lambda: gym.make("FrozenLake-v1", disable_env_checker=True)], seed=0)
    envs.reset()
    assert envs.step(action(0, size=4)).observations["state"].sum() == 1.0
