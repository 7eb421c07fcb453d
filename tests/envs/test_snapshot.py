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

VECTOR_IDS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "TMaze-v0"]
CLASSIC_IDS = [
    "CartPole-v1",
    "Acrobot-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "Pendulum-v1",
]
# One for each kind of state. docs/log.md has what else was tried by hand.
PACKAGE_IDS = [
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


def save_and_load(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def advance(envs: VectorEnv, step: TimeStep, actions: np.random.Generator) -> TimeStep:
    over = step.terminated | step.truncated
    if over.any():
        return envs.reset(over)
    return envs.step(envs.random_action(actions))


def run_steps(envs: VectorEnv, step: TimeStep, seed: int, steps: int) -> bytes:
    """Return the bytes of the time steps under random actions."""
    actions, result = np.random.default_rng(seed), b""
    for _ in range(steps):
        step = advance(envs, step, actions)
        arrays = [*step.observations.values(), step.reward, step.is_first, step.terminated]
        result += b"".join(array.tobytes() for array in [*arrays, step.truncated])
    return result


def state_of(env: gym.Env) -> bytes:
    return np.asarray(env.unwrapped.state, np.float64).tobytes()  # type: ignore[attr-defined]


@pytest.mark.parametrize("env_id", VECTOR_IDS)
def test_restored_vector_returns_the_same_time_steps(env_id: str):
    envs = make(env_id, n=2, repeat=2, limit=90)
    step = envs.reset()
    run_steps(envs, step, seed=1, steps=57)
    step = envs.step(envs.random_action(np.random.default_rng(2)))
    state = save_and_load(envs.snapshot())
    expected = run_steps(envs, step, seed=3, steps=600)

    fresh = make(env_id, n=2, repeat=2, limit=90)
    fresh.restore(state)
    assert run_steps(fresh, step, seed=3, steps=600) == expected


@pytest.mark.parametrize(
    ("package", "env_id"), [(package, env_id) for package, ids in PACKAGE_IDS for env_id in ids]
)
def test_restored_simulator_of_optional_package_matches_bytes(package: str, env_id: str):
    needed = [package, "imageio"] if package == "mujoco" else [package]
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    limit = 400 if package == "ale_py" else 50  # short episodes, so that there are resets
    envs = make(env_id, repeat=2, limit=limit)
    step, actions = envs.reset(), np.random.default_rng(1)
    for _ in range(32):
        step = advance(envs, step, actions)
    state = save_and_load(envs.snapshot())
    expected = run_steps(envs, step, seed=3, steps=220)

    fresh = make(env_id, repeat=2, limit=limit)
    fresh.restore(state)
    assert run_steps(fresh, step, seed=3, steps=220) == expected
    envs.close()
    fresh.close()


def test_restored_vector_keeps_time_steps_outside_the_reset_mask():
    envs = make("CartPole-v1", n=2)
    envs.reset()
    step = envs.step(envs.random_action(np.random.default_rng(0)))
    fresh = make("CartPole-v1", n=2)
    fresh.restore(save_and_load(envs.snapshot()))
    after_reset = fresh.reset(np.array([True, False]))
    np.testing.assert_array_equal(
        after_reset.observations["state"][1], step.observations["state"][1]
    )
    assert after_reset.reward.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("env_id", CLASSIC_IDS)
def test_snapshot_lists_every_attribute_that_changes(env_id: str):
    """Guards the lists in snapshot.py against a Gymnasium version with more state."""
    env = gym.make(env_id, disable_env_checker=True)
    env.reset(seed=0)
    before = [copy.deepcopy(_attributes(layer)) for layer in snapshots._layers(env)]
    env.action_space.seed(0)
    for _ in range(40):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()
    for layer, old in zip(snapshots._layers(env), before, strict=True):
        listed = (snapshots.ENVIRONMENT_STATE | snapshots.WRAPPER_STATE)[type(layer)]
        new = _attributes(layer)
        changed = {name for name in new if not np.array_equal(new[name], old.get(name))}
        assert changed <= {*listed, "_np_random"}


def _attributes(layer: gym.Env) -> dict[str, Any]:
    constant = ("env", "spec", "_cached_spec", "action_space", "observation_space")
    return {name: value for name, value in vars(layer).items() if name not in constant}


@pytest.mark.parametrize("env_id", CLASSIC_IDS)
def test_restored_environment_steps_like_the_first(env_id: str):
    env, fresh = (gym.make(env_id, disable_env_checker=True) for _ in range(2))
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(5):
        env.step(env.action_space.sample())
    state = snapshots.capture(env)
    assert state is not None
    snapshots.restore(fresh, save_and_load(state))
    for _ in range(100):
        action = env.action_space.sample()
        expected, result = env.step(action), fresh.step(action)
        np.testing.assert_array_equal(expected[0], result[0])
        assert expected[1:4] == result[1:4] and state_of(env) == state_of(fresh)
        if expected[2] or expected[3]:
            env.reset()
            fresh.reset()


def test_unverified_environment_or_wrapper_has_no_snapshot():
    envs = make("ToyCount-v0")
    envs.reset()
    assert envs.snapshot() is None
    wrapped = gym.wrappers.RecordEpisodeStatistics(gym.make("CartPole-v1"))
    wrapped.reset()
    assert snapshots.capture(wrapped) is None


def test_snapshot_of_other_environments_raises_config_error():
    envs = make("CartPole-v1", n=2)
    envs.reset()
    state = envs.snapshot()
    assert state is not None
    with refused(ConfigError, "2", "env.num_envs=1"):
        make("CartPole-v1").restore(state)
    with refused(ConfigError, "CartPoleEnv", "AcrobotEnv"):
        make("Acrobot-v1", n=2).restore(state)


class Item:
    def __init__(self):
        raise AssertionError("unpacking must not run code of a class")


def test_packed_objects_keep_shared_references():
    first, second, root = object.__new__(Item), object.__new__(Item), object()
    vars(first).update(pair=(1, np.int64(2)), friend=second, owner=root, tags={"a", "b"})
    vars(second).update(friend=first, bag=[first, {"k": second}])
    classes = {"Item": Item}
    packed = save_and_load(Packer(classes, root).pack([first, first, None]))
    new_root = object()
    result, same, nothing = Unpacker(classes, new_root).unpack(packed)
    assert result is same and nothing is None
    assert result.friend.friend is result and result.friend.bag[1]["k"] is result.friend
    assert result.pair == (1, 2) and type(result.pair[1]) is np.int64
    assert result.owner is new_root and result.tags == {"a", "b"}


def test_unlisted_class_is_neither_packed_nor_unpacked():
    with refused(TypeError, "Item"):
        Packer({}, None).pack([object.__new__(Item)])
    unlisted = {"kind": "object", "class": "Popen", "number": 0, "data": [["args", "true"]]}
    with refused(KeyError, "Popen"):
        Unpacker({"Item": Item}, None).unpack(unlisted)


def test_plain_values_keep_value_and_type():
    values = [np.float64(0.1), np.zeros((2, 0), np.float32), (1, np.float32(0.3)), None, 2**127]
    values += [np.arange(6, dtype=np.int16).reshape(2, 3), b"\x00\xff", [True, [1]], {1: "a"}]
    for value in values:
        result = from_plain(save_and_load(to_plain(value)))
        assert type(result) is type(value)
        assert repr(result) == repr(value)
    with refused(TypeError, "set"):
        to_plain({1})
