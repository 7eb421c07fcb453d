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
from llmdreamer.envs.simulator import Frames


def show(space: spaces.Space, value: Any) -> VectorEnv:
    options = VectorOptions(Frames(image_size=16, max_text_bytes=8))
    return VectorEnv([lambda: toys.Show(space, value)], 0, options)


def test_reset_touches_only_the_masked_rows():
    envs = make("ToyCount-v0", n=2, end=99)
    envs.reset()
    envs.step(action(1, n=2))
    rows = envs.reset(np.array([False, True]))
    assert rows.is_first.tolist() == [False, True]
    assert rows.reward.tolist() == [1.0, 0.0]
    assert rows.observations["state"].tolist() == [[1.0, 1.0], [0.0, -1.0]]
    assert envs.step(action(2, n=2)).observations["state"].tolist() == [[2.0, 2.0], [1.0, 2.0]]


def test_rows_given_out_do_not_change_later():
    envs = make("ToyCount-v0", end=99)
    first = envs.reset()
    envs.step(action(1))
    assert first.observations["state"].tolist() == [[0.0, -1.0]] and first.is_first[0]


def test_no_action_follows_an_episodes_last_row():
    envs = make("ToyCount-v0", end=1)
    envs.reset()
    assert envs.step(action(0)).terminated[0]
    with refused(AssertionError, "reset"):
        envs.step(action(0))
    envs.reset(np.array([True]))
    envs.step(action(0))


def test_pole_fallen_terminates_and_time_over_truncates():
    envs = make("CartPole-v1", limit=500)
    envs.reset()
    rows = [envs.step(action(1, size=2)) for _ in range(8)]
    while not (rows[-1].terminated[0] or rows[-1].truncated[0]):
        rows.append(envs.step(action(1, size=2)))
    assert rows[-1].terminated[0] and not rows[-1].truncated[0]
    short = make("CartPole-v1", limit=3)
    short.reset()
    rows = [short.step(action(1, size=2)) for _ in range(3)]
    assert [row.truncated[0] for row in rows] == [False, False, True]
    assert not rows[-1].terminated[0]


def test_the_first_reset_is_seeded_and_later_ones_go_on():
    first, second = make("CartPole-v1", n=2), make("CartPole-v1", n=2)
    a, b = first.reset().observations["state"], second.reset().observations["state"]
    np.testing.assert_array_equal(a, b)
    assert (a[0] != a[1]).any()
    again = first.reset().observations["state"]
    assert (again != a).any()
    np.testing.assert_array_equal(again, second.reset().observations["state"])


def test_an_environments_seed_does_not_depend_on_how_many_there_are():
    one, three = make("CartPole-v1", n=1), make("CartPole-v1", n=3)
    np.testing.assert_array_equal(
        one.reset().observations["state"][0], three.reset().observations["state"][0]
    )


def test_discrete_actions_start_where_the_space_does():
    envs = make("ToyCount-v0", start=-1)
    envs.reset()
    shown = [envs.step(action(index)).observations["state"][0, 1] for index in range(3)]
    assert shown == [-1.0, 0.0, 1.0]


def test_random_actions_are_one_hot_and_repeatable():
    envs = make("ToyCount-v0", n=50)
    drawn = envs.random_action(np.random.default_rng(1))
    assert drawn.shape == (50, 3) and drawn.dtype == np.float32
    assert (drawn.sum(1) == 1).all() and (drawn.sum(0) > 0).all()
    np.testing.assert_array_equal(drawn, envs.random_action(np.random.default_rng(1)))


def test_a_dict_observation_keeps_its_keys_and_an_image_its_bytes():
    image = np.arange(768).astype(np.uint8).reshape(16, 16, 3)
    space = spaces.Dict(
        picture=spaces.Box(0, 255, (16, 16, 3), np.uint8),
        speed=spaces.Box(-1, 1, (2,), np.float64),
        mode=spaces.Discrete(3, start=1),
        level=spaces.Box(0, 9, (), np.int64),
    )
    envs = show(space, {"picture": image, "speed": np.array([0.5, -1.0]), "mode": 2, "level": 7})
    assert envs.spec.observations == {
        "picture": (16, 16, 3), "speed": (2,), "mode": (3,), "level": (1,)
    }  # fmt: skip
    seen = envs.reset().observations
    assert seen["picture"].dtype == np.uint8 and (seen["picture"][0] == image).all()
    assert seen["speed"].dtype == np.float32 and seen["speed"].tolist() == [[0.5, -1.0]]
    assert seen["mode"].tolist() == [[0.0, 1.0, 0.0]] and seen["level"].tolist() == [[7.0]]


def test_a_discrete_observation_is_one_hot_state():
    envs = show(spaces.Discrete(4), 3)
    assert envs.reset().observations["state"].tolist() == [[0.0, 0.0, 0.0, 1.0]]


def test_a_uint8_vector_is_a_vector():
    envs = show(spaces.Box(0, 255, (2,), np.uint8), np.array([0, 255], np.uint8))
    assert envs.reset().observations["state"].dtype == np.float32


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ("nan", ["'state'", "NaN"]),
        ("reward", ["reward", "inf"]),
        ("raise", ["OSError: the simulator is gone"]),
    ],
)
def test_a_broken_step_names_the_environment_and_the_step(fault: str, parts: list[str]):
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
        (spaces.Box(-np.inf, np.inf, (1,), np.float64), np.array([1e300])),  # inf as float32
        (spaces.Discrete(3), 3),
        (spaces.Dict(a=spaces.Discrete(3)), {"b": 1}),
    ],
)
def test_an_observation_outside_its_space_is_an_error(space: spaces.Space, value: Any):
    with refused(EnvError, "environment 0", "step 0"):
        show(space, value).reset()


def test_gymnasiums_own_discrete_world_runs():
    envs = VectorEnv([lambda: gym.make("FrozenLake-v1", disable_env_checker=True)], seed=0)
    envs.reset()
    assert envs.step(action(0, size=4)).observations["state"].sum() == 1.0
