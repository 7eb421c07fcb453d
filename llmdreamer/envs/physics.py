"""What moves in a MuJoCo simulation, as arrays by name: of its state, and of what was computed from it.

The state alone does not do. Observations and rewards read quantities that MuJoCo computed in the middle
of the last step (`xpos`, `cfrc_ext`, `sensordata`), of which computing them anew gives others.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from llmdreamer.utils.errors import ConfigError

MODEL = (
    "body_pos", "body_quat", "geom_pos", "geom_size", "geom_rgba", "hfield_data", "light_pos", "mat_rgba",
    "site_pos", "site_size", "wrap_prm",
)  # fmt: skip
"""Of a model, what tasks change from episode to episode; all else is as it was loaded."""

KNOWN = tuple(
    f"{name}_v5"
    for name in (
        *("ant", "half_cheetah", "hopper", "humanoid", "humanoidstandup", "inverted_pendulum"),
        *("inverted_double_pendulum", "pusher", "reacher", "swimmer", "walker2d"),
    )
)
"""Gymnasium's tasks with a snapshot that was seen to be exact."""

Arrays = dict[str, NDArray[Any]]


def capture(env: Any) -> dict[str, Any] | None:
    """All that moves in one of Gymnasium's tasks, beside its generator; None where that is not known."""
    if type(env).__module__.removeprefix("gymnasium.envs.mujoco.") not in KNOWN:
        return None
    return read(env.model, env.data)


def restore(env: Any, state: dict[str, Any]) -> None:
    """Put a task where `capture` saw it. Raises ConfigError."""
    write(env.model, env.data, state)


def read(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, Any]:
    """Copies of all that moves: `time`, flags, and arrays of `data` and of `model`."""
    return {
        "time": float(data.time),
        "flags": {name: int(getattr(data, name)) for name in _flags(data)},
        "data": {name: array.copy() for name, array in _arrays(model, data).items()},
        "model": {name: getattr(model, name).copy() for name in MODEL},
    }


def write(model: mujoco.MjModel, data: mujoco.MjData, state: dict[str, Any]) -> None:
    """Put a simulation of the same model where `read` saw it.

    Raises:
        ConfigError: naming an array of another shape.
    """
    for name in MODEL:
        _fill(name, getattr(model, name), state["model"][name])
    here = _arrays(model, data)
    for name, array in here.items():
        _fill(name, array, state["data"][name])
    data.time = state["time"]
    mujoco.mj_forward(model, data)  # the arrays left out
    for name, array in here.items():  # computed before this state, not from it
        array[...] = state["data"][name]
    for name in _flags(data):
        setattr(data, name, state["flags"][name])


def _flags(data: mujoco.MjData) -> list[str]:
    """What MuJoCo remembers to have computed already since the state moved."""
    return [name for name in dir(data) if name.startswith("flg_")]


def _arrays(model: mujoco.MjModel, data: mujoco.MjData) -> Arrays:
    """Those of `data` whose size is the model's. The others hold the contacts there are: nothing in them
    outlives a step, and computing them anew from the state gives the same."""
    fixed = _named(mujoco.MjData(model))  # without contacts
    return {name: array for name, array in _named(data).items() if fixed[name].size > 0}


def _named(data: mujoco.MjData) -> Arrays:
    values = {name: getattr(data, name) for name in dir(data) if not name.startswith("_")}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _fill(name: str, array: NDArray[Any], saved: Any) -> None:
    if not isinstance(saved, np.ndarray) or saved.shape != array.shape:
        raise ConfigError(
            f"snapshot of another simulation: {name} is not {array.shape}; check env.*"
        )
    array[...] = saved
