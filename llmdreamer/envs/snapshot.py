"""What moves inside an environment, as plain types, where it is known to be everything.

Checkpoints are read with `weights_only=True`, so nothing here is a pickle: numbers, strings, lists
and dicts only. An environment or wrapper that is not listed has no snapshot, because an unlisted
attribute would be lost in silence; resuming then waits for an episode's boundary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from llmdreamer.envs.wrappers import ActionRepeat
from llmdreamer.errors import ConfigError

# Exact classes: a subclass may move more than its parent. A test holds these lists against what
# really changes while stepping.
ENVIRONMENTS: dict[type, tuple[str, ...]] = {
    CartPoleEnv: ("state", "steps_beyond_terminated"),
    AcrobotEnv: ("state",),
    MountainCarEnv: ("state",),
    Continuous_MountainCarEnv: ("state",),
    PendulumEnv: ("state", "last_u"),
}
WRAPPERS: dict[type, tuple[str, ...]] = {
    TimeLimit: ("_elapsed_steps",),
    OrderEnforcing: ("_has_reset",),
    PassiveEnvChecker: (),  # remembers only which checks it has made
    ActionRepeat: (),
}


def capture(env: gym.Env[Any, Any]) -> dict[str, Any] | None:
    """Return all that moves in a reset environment, or None if that is not known."""
    layers = list(_layers(env))
    if any(type(layer) not in (ENVIRONMENTS | WRAPPERS) for layer in layers):
        return None
    base = env.unwrapped
    return {
        "layers": [_read(layer) for layer in layers],
        "rng": base.np_random.bit_generator.state,
        "rng_seed": base.np_random_seed,
    }


def restore(env: gym.Env[Any, Any], snapshot: dict[str, Any]) -> None:
    """Put an environment, fresh or not, where `capture` saw it.

    Raises:
        ConfigError: if the snapshot is of an environment built otherwise.
    """
    layers = list(_layers(env))
    taken = [layer["class"] for layer in snapshot["layers"]]
    here = [type(layer).__name__ for layer in layers]
    if taken != here:
        raise ConfigError(f"snapshot of {_chain(taken)} does not fit {_chain(here)}; check env.*")
    for layer, saved in zip(layers, snapshot["layers"], strict=True):
        for name, value in saved["attributes"].items():
            setattr(layer, name, from_plain(value))
    base = env.unwrapped
    base.np_random.bit_generator.state = snapshot["rng"]
    base._np_random_seed = snapshot["rng_seed"]


def to_plain(value: Any) -> Any:
    """Return numbers, strings, lists and dicts from which `from_plain` makes the same value.

    Types are kept exactly: the power of a numpy scalar differs from a Python float's in the last
    bit.

    Raises:
        TypeError: if the value is none of None, number, string, numpy array or scalar, or tuple.
    """
    if isinstance(value, np.ndarray):
        shape = list(value.shape)
        data = value.ravel().tolist()
        return {"kind": "array", "dtype": value.dtype.str, "shape": shape, "data": data}
    if isinstance(value, np.generic):  # before float: np.float64 is one
        return {"kind": "scalar", "dtype": value.dtype.str, "data": value.item()}
    if isinstance(value, tuple):
        return {"kind": "tuple", "data": [to_plain(item) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"no plain form of {type(value).__name__}")


def from_plain(value: Any) -> Any:
    """Undo `to_plain`."""
    if not isinstance(value, dict):
        return value
    if value["kind"] == "tuple":
        return tuple(from_plain(item) for item in value["data"])
    if value["kind"] == "scalar":
        return np.dtype(value["dtype"]).type(value["data"])
    return np.array(value["data"], dtype=value["dtype"]).reshape(value["shape"])


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _read(layer: gym.Env[Any, Any]) -> dict[str, Any]:
    names = (ENVIRONMENTS | WRAPPERS)[type(layer)]
    attributes = {name: to_plain(getattr(layer, name)) for name in names}
    return {"class": type(layer).__name__, "attributes": attributes}


def _chain(names: list[str]) -> str:
    return "(".join(names) + ")" * (len(names) - 1)
