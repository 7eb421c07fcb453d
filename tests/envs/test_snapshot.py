from __future__ import annotations

import copy
import importlib.util
import io
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from refusals import refused
from toys import make

from llmdreamer.envs import VectorEnv
from llmdreamer.envs import snapshot as snapshots
from llmdreamer.envs.plain import Packer, Unpacker, from_plain, to_plain
from llmdreamer.types import TimeStep
from llmdreamer.utils.errors import ConfigError

IDS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "TMaze-v0"]
ALL_IDS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
# One for each thing that moves in another way. What else was tried by hand is in docs/log.md.
OF_PACKAGES = [
    ("mujoco", ["Ant-v5", "HalfCheetah-v5", "InvertedPendulum-v5", "Reacher-v5"]),
    ("dm_control", ["dmc:reacher-easy", "dmc:point_mass-hard", "dmc:finger-turn_hard"]),
    (
        "minigrid",
        [
            "MiniGrid-DoorKey-5x5-v0",
            "MiniGrid-FetchTwo-5x5-v0",
            "MiniGrid-Dynamic-Obstacles-5x5-v0",
        ],
    ),
    ("minigrid", ["BabyAI-GoToLocal-v0", "BabyAI-BossLevel-v0"]),
    ("ale_py", ["ALE/Breakout-v5"]),
]


def through_a_checkpoint(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def advance(envs: VectorEnv, row: TimeStep, actions: np.random.Generator) -> TimeStep:
    over = row.terminated | row.truncated
    if over.any():
        return envs.reset(over)
    return envs.step(envs.random_action(actions))


def run(envs: VectorEnv, row: TimeStep, seed: int, steps: int) -> bytes:
    actions, seen = np.random.default_rng(seed), b""
    for _ in range(steps):
        row = advance(envs, row, actions)
        arrays = [*row.observations.values(), row.reward, row.is_first, row.terminated]
        seen += b"".join(array.tobytes() for array in [*arrays, row.truncated])
    return seen


def state_of(env: gym.Env) -> bytes:
    return np.asarray(env.unwrapped.state, np.float64).tobytes()  # type: ignore[attr-defined]


@pytest.mark.parametrize("env_id", IDS)
def test_a_restored_vector_gives_the_very_rows_of_the_first(env_id: str):
    envs = make(env_id, n=2, repeat=2, limit=90)
    row = envs.reset()
    run(envs, row, seed=1, steps=57)
    row = envs.step(envs.random_action(np.random.default_rng(2)))
    state = through_a_checkpoint(envs.snapshot())
    expected = run(envs, row, seed=3, steps=600)

    fresh = make(env_id, n=2, repeat=2, limit=90)
    fresh.restore(state)
    assert run(fresh, row, seed=3, steps=600) == expected


@pytest.mark.parametrize(
    ("package", "env_id"), [(package, env_id) for package, ids in OF_PACKAGES for env_id in ids]
)
def test_another_packages_simulator_goes_on_to_the_byte(package: str, env_id: str):
    needed = [package, "imageio"] if package == "mujoco" else [package]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    limit = 400 if package == "ale_py" else 50  # of steps, so that there are resets
    envs = make(env_id, repeat=2, limit=limit)
    row, actions = envs.reset(), np.random.default_rng(1)
    for _ in range(32):
        row = advance(envs, row, actions)
    state = through_a_checkpoint(envs.snapshot())
    expected = run(envs, row, seed=3, steps=220)

    fresh = make(env_id, repeat=2, limit=limit)
    fresh.restore(state)
    found = run(fresh, row, seed=3, steps=220)
    assert found == expected
    envs.close()
    fresh.close()


def test_a_restored_vector_keeps_the_rows_that_a_masked_reset_leaves():
    envs = make("CartPole-v1", n=2)
    envs.reset()
    row = envs.step(envs.random_action(np.random.default_rng(0)))
    fresh = make("CartPole-v1", n=2)
    fresh.restore(through_a_checkpoint(envs.snapshot()))
    again = fresh.reset(np.array([True, False]))
    np.testing.assert_array_equal(again.observations["state"][1], row.observations["state"][1])
    assert again.reward.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_every_attribute_that_moves_is_in_the_snapshot(env_id: str):
    """Guards the lists in snapshot.py against a gymnasium that adds a moving part."""
    env = gym.make(env_id, disable_env_checker=True)
    env.reset(seed=0)
    before = [copy.deepcopy(_moving(layer)) for layer in snapshots._layers(env)]
    env.action_space.seed(0)
    for _ in range(40):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    for layer, old in zip(snapshots._layers(env), before, strict=True):
        listed = (snapshots.ENVIRONMENTS | snapshots.WRAPPERS)[type(layer)]
        new = _moving(layer)
        changed = {name for name in new if not np.array_equal(new[name], old.get(name))}
        assert changed <= {*listed, "_np_random"}


def _moving(layer: gym.Env) -> dict[str, Any]:
    skip = ("env", "spec", "_cached_spec", "action_space", "observation_space")
    return {name: value for name, value in vars(layer).items() if name not in skip}


@pytest.mark.parametrize("env_id", ALL_IDS)
def test_a_restored_environment_moves_as_the_first(env_id: str):
    env, fresh = (gym.make(env_id, disable_env_checker=True) for _ in range(2))
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(5):
        env.step(env.action_space.sample())
    state = snapshots.capture(env)
    assert state is not None
    snapshots.restore(fresh, through_a_checkpoint(state))
    for _ in range(100):
        action = env.action_space.sample()
        mine, theirs = env.step(action), fresh.step(action)
        np.testing.assert_array_equal(mine[0], theirs[0])
        assert mine[1:4] == theirs[1:4] and state_of(env) == state_of(fresh)
        if mine[2] or mine[3]:
            env.reset()
            fresh.reset()


def test_an_unverified_environment_or_wrapper_has_no_snapshot():
    envs = make("ToyCount-v0")
    envs.reset()
    assert envs.snapshot() is None
    wrapped = gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))
    wrapped.reset()
    assert snapshots.capture(wrapped) is None


def test_a_snapshot_of_other_environments_is_refused():
    envs = make("CartPole-v1", n=2)
    envs.reset()
    state = envs.snapshot()
    assert state is not None
    with refused(ConfigError, "2", "env.num_envs=1"):
        make("CartPole-v1").restore(state)
    with refused(ConfigError, "CartPoleEnv", "AcrobotEnv"):
        make("Acrobot-v1", n=2).restore(state)


class Thing:
    def __init__(self):
        raise AssertionError("unpacking runs no code of a class")


def test_things_that_point_to_one_another_come_back_as_they_were():
    one, other, root = object.__new__(Thing), object.__new__(Thing), object()
    vars(one).update(place=(1, np.int64(2)), friend=other, home=root, seen={"a", "b"})
    vars(other).update(friend=one, bag=[one, {"k": other}])
    classes = {"Thing": Thing}
    packed = through_a_checkpoint(Packer(classes, root).pack([one, one, None]))
    here = object()
    first, again, nothing = Unpacker(classes, here).unpack(packed)
    assert first is again and nothing is None
    assert first.friend.friend is first and first.friend.bag[1]["k"] is first.friend
    assert first.place == (1, 2) and type(first.place[1]) is np.int64
    assert first.home is here and first.seen == {"a", "b"}


def test_a_thing_of_another_kind_is_neither_packed_nor_made():
    with refused(TypeError, "Thing"):
        Packer({}, None).pack([object.__new__(Thing)])
    stranger = {"kind": "object", "class": "Popen", "number": 0, "data": [["args", "true"]]}
    with refused(KeyError, "Popen"):
        Unpacker({"Thing": Thing}, None).unpack(stranger)


def test_plain_values_come_back_with_their_type():
    values = [np.float64(0.1), np.zeros((2, 0), np.float32), (1, np.float32(0.3)), None, 2**127]
    values += [np.arange(6, dtype=np.int16).reshape(2, 3), b"\x00\xff", [True, [1]], {1: "a"}]
    for value in values:
        back = from_plain(through_a_checkpoint(to_plain(value)))
        assert type(back) is type(value)
        assert repr(back) == repr(value)
    with refused(TypeError, "set"):
        to_plain({1})
    # Once arrays were lists, and there are checkpoints of then.
    old = {"kind": "array", "dtype": "<f4", "shape": [1, 2], "data": [0.5, 2.0]}
    np.testing.assert_array_equal(from_plain(old), np.array([[0.5, 2.0]], np.float32))
