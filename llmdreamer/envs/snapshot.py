"""What moves inside an environment, as plain types, where it is known to be everything.

Checkpoints are read with `weights_only=True`, so nothing here is a pickle: numbers, strings, lists
and dicts only. An environment or wrapper that is not listed has no snapshot, because an unlisted
attribute would be lost in silence; resuming then waits for an episode's boundary.
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

# Exact classes: a subclass may move more than its parent. A test holds these lists against what
# really changes while stepping.
ENVIRONMENTS: dict[type, tuple[str, ...]] = {
    CartPoleEnv: ("state", "steps_beyond_terminated"),
    AcrobotEnv: ("state",),
    MountainCarEnv: ("state",),
    Continuous_MountainCarEnv: ("state",),
    PendulumEnv: ("state", "last_u"),
    TMaze: ("_sign", "_place"),
}
KEEPERS = {
    "gymnasium.envs.mujoco.": "llmdreamer.envs.physics",
    "llmdreamer.envs.dmc": "llmdreamer.envs.dmc",
    "minigrid.envs.": "llmdreamer.envs.minigrid",
    "llmdreamer.envs.fetch_two": "llmdreamer.envs.minigrid",
    "ale_py.env": "llmdreamer.envs.atari",
}
"""Of environments that need another package, by how their class's module begins: the module of ours that
has `capture(env)`, None where not all that moves is known, and `restore(env, state)`."""
WRAPPERS: dict[type, tuple[str, ...]] = {
    TimeLimit: ("_elapsed_steps",),
    OrderEnforcing: ("_has_reset",),
    PassiveEnvChecker: (),  # remembers only which checks it has made
    ActionRepeat: (),
}
STILL = ("llmdreamer.envs.minigrid.PartialView", "llmdreamer.envs.atari.PooledRepeat")
"""More wrappers in which nothing moves, by name: their modules need other packages."""


def capture(env: gym.Env[Any, Any]) -> dict[str, Any] | None:
    """Return all that moves in a reset environment, or None if that is not known."""
    *wrappers, base = _layers(env)
    if any(_attributes(wrapper) is None for wrapper in wrappers):
        return None
    moving: dict[str, Any] | None = {}
    if (keeper := _keeper(base)) is not None:
        moving = keeper.capture(base)
    elif _attributes(base) is None:
        moving = None
    if moving is None:
        return None
    return {
        "layers": [_read(layer) for layer in (*wrappers, base)],
        "moving": to_plain(moving),
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
    base = layers[-1]
    if (keeper := _keeper(base)) is not None:
        keeper.restore(base, from_plain(snapshot["moving"]))
    base.np_random.bit_generator.state = snapshot["rng"]
    base._np_random_seed = snapshot["rng_seed"]


def _layers(env: gym.Env[Any, Any]) -> Iterator[gym.Env[Any, Any]]:
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env
    yield env


def _attributes(layer: gym.Env[Any, Any]) -> tuple[str, ...] | None:
    """Those that move in a layer by itself; None if that is not known, or a keeper knows."""
    kind = type(layer)
    if f"{kind.__module__}.{kind.__qualname__}" in STILL:
        return ()
    return (ENVIRONMENTS | WRAPPERS).get(kind)


def _keeper(base: gym.Env[Any, Any]) -> ModuleType | None:
    found = (name for start, name in KEEPERS.items() if type(base).__module__.startswith(start))
    name = next(found, None)
    return None if name is None else import_module(name)


def _read(layer: gym.Env[Any, Any]) -> dict[str, Any]:
    attributes = {name: to_plain(getattr(layer, name)) for name in _attributes(layer) or ()}
    return {"class": type(layer).__name__, "attributes": attributes}


def _chain(names: list[str]) -> str:
    return "(".join(names) + ")" * (len(names) - 1)
