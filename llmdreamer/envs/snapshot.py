"""Save and restore the complete state of an environment as plain types.

Checkpoints are loaded with `weights_only=True`, so a snapshot holds only numbers, strings, lists and
dicts. An environment or wrapper that is not listed here has no snapshot, because an unlisted attribute
would be lost silently. On resume, its current episode is then truncated.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.acrobot import AcrobotEnv
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.envs.classic_control.continuous_mountain_car import Continuous_MountainCarEnv
from gymnasium.envs.classic_control.mountain_car import MountainCarEnv
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

from llmdreamer.envs.plain import from_plain, to_plain
from llmdreamer.envs.tmaze import TMaze
from llmdreamer.envs.wrappers import ActionRepeat
from llmdreamer.utils.errors import ConfigError

# Exact classes: a subclass may have more state than its parent. A test compares these lists with the
# attributes that change while stepping.
ENVIRONMENT_STATE: dict[type, tuple[str, ...]] = {
    CartPoleEnv: ("state", "steps_beyond_terminated"),
    AcrobotEnv: ("state",),
    MountainCarEnv: ("state",),
    Continuous_MountainCarEnv: ("state",),
    PendulumEnv: ("state", "last_u"),
    TMaze: ("_sign", "_position"),
}
SNAPSHOT_MODULES = {
    "gymnasium.envs.mujoco.": "llmdreamer.envs.mujoco_state",
    "llmdreamer.envs.dmc": "llmdreamer.envs.dmc",
    "minigrid.envs.": "llmdreamer.envs.minigrid",
    "llmdreamer.envs.fetch_two": "llmdreamer.envs.minigrid",
    "ale_py.env": "llmdreamer.envs.atari",
}
"""Modules with `capture(env)` and `restore(env, state)` for environments of optional packages, by the prefix
of the environment class's module. `capture` returns None if the environment's state is not fully known."""
WRAPPER_STATE: dict[type, tuple[str, ...]] = {
    TimeLimit: ("_elapsed_steps",),
    OrderEnforcing: ("_has_reset",),
    PassiveEnvChecker: (),  # holds only which checks it has made
    ActionRepeat: (),
}
STATELESS_WRAPPERS = (
    "llmdreamer.envs.minigrid.PartialView",
    "llmdreamer.envs.atari.MaxPooledActionRepeat",
)
"""More wrappers without state, by name: their modules need optional packages."""


def capture(env: gym.Env[Any, Any]) -> dict[str, Any] | None:
    """Return the complete state of a reset environment, or None if it has no verified snapshot."""
    *wrappers, base = _layers(env)
    if any(_attributes(wrapper) is None for wrapper in wrappers):
        return None
    simulator_state: dict[str, Any] | None = {}
    if (module := _snapshot_module(base)) is not None:
        simulator_state = module.capture(base)
    elif _attributes(base) is None:
        simulator_state = None
    if simulator_state is None:
        return None
    return {
        "layers": [_capture_layer(layer) for layer in (*wrappers, base)],
        "simulator": to_plain(simulator_state),
        "rng": base.np_random.bit_generator.state,
        "rng_seed": base.np_random_seed,
    }


def restore(env: gym.Env[Any, Any], snapshot: dict[str, Any]) -> None:
    """Restore the state that `capture` returned; the environment need not be reset.

    Raises:
        ConfigError: if the snapshot is of an environment with other classes.
    """
    layers = list(_layers(env))
    saved_names = [layer["class"] for layer in snapshot["layers"]]
    names = [type(layer).__name__ for layer in layers]
    if saved_names != names:
        raise ConfigError(
            f"the snapshot of {_nested(saved_names)} does not fit {_nested(names)}; check env.*"
        )
    for layer, saved in zip(layers, snapshot["layers"], strict=True):
        for name, value in saved["attributes"].items():
            setattr(layer, name, from_plain(value))
    base = layers[-1]
    if (module := _snapshot_module(base)) is not None:
        module.restore(base, from_plain(snapshot["simulator"]))
    base.np_random.bit_generator.state = snapshot["rng"]
    base._np_random_seed = snapshot["rng_seed"]


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _attributes(layer: gym.Env[Any, Any]) -> tuple[str, ...] | None:
    """Return the names of a layer's state attributes; None if its class is not listed."""
    cls = type(layer)
    if f"{cls.__module__}.{cls.__qualname__}" in STATELESS_WRAPPERS:
        return ()
    return (ENVIRONMENT_STATE | WRAPPER_STATE).get(cls)


def _snapshot_module(base: gym.Env[Any, Any]) -> ModuleType | None:
    for prefix, name in SNAPSHOT_MODULES.items():
        if type(base).__module__.startswith(prefix):
            return import_module(name)
    return None


def _capture_layer(layer: gym.Env[Any, Any]) -> dict[str, Any]:
    attributes = {name: to_plain(getattr(layer, name)) for name in _attributes(layer) or ()}
    return {"class": type(layer).__name__, "attributes": attributes}


def _nested(names: list[str]) -> str:
    return "(".join(names) + ")" * (len(names) - 1)
