"""Save and restore a MuJoCo simulation as named arrays: its state, and the quantities computed from it.

The state alone is not enough. Observations and rewards read quantities that MuJoCo computed in the middle
of the last step (`xpos`, `cfrc_ext`, `sensordata`); recomputing them from the state gives other values.
"""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from llmdreamer.utils.errors import ConfigError

MUTABLE_MODEL_ARRAYS = (
    "body_pos", "body_quat", "geom_pos", "geom_size", "geom_rgba", "hfield_data", "light_pos", "mat_rgba",
    "site_pos", "site_size", "wrap_prm",
)  # fmt: skip
"""Arrays of the model that tasks change between episodes; the others stay as they were loaded."""

SNAPSHOT_MODULES = tuple(
    f"{name}_v5"
    for name in (
        *("ant", "half_cheetah", "hopper", "humanoid", "humanoidstandup", "inverted_pendulum"),
        *("inverted_double_pendulum", "pusher", "reacher", "swimmer", "walker2d"),
    )
)
"""Modules of Gymnasium's tasks whose snapshots were verified to be exact."""

Arrays = dict[str, NDArray[Any]]


def capture(env: Any) -> dict[str, Any] | None:
    """Return the state of a Gymnasium task without its random generator; None for other tasks."""
    if type(env).__module__.removeprefix("gymnasium.envs.mujoco.") not in SNAPSHOT_MODULES:
        return None
    return read_state(env.model, env.data)


def restore(env: Any, state: dict[str, Any]) -> None:
    """Restore a state that `capture` returned. Raises ConfigError."""
    write_state(env.model, env.data, state)


def read_state(model: mujoco.MjModel, data: mujoco.MjData) -> dict[str, Any]:
    """Return copies of `time`, the flags, and the arrays of `data` and `model` that change."""
    return {
        "time": float(data.time),
        "flags": {name: int(getattr(data, name)) for name in _flags(data)},
        "data": {name: array.copy() for name, array in _fixed_size_arrays(model, data).items()},
        "model": {name: getattr(model, name).copy() for name in MUTABLE_MODEL_ARRAYS},
    }


def write_state(model: mujoco.MjModel, data: mujoco.MjData, state: dict[str, Any]) -> None:
    """Set a simulation of the same model to a state that `read_state` returned.

    Raises:
        ConfigError: if an array has another shape; the message names it.
    """
    for name in MUTABLE_MODEL_ARRAYS:
        _fill(name, getattr(model, name), state["model"][name])
    arrays = _fixed_size_arrays(model, data)
    for name, array in arrays.items():
        _fill(name, array, state["data"][name])
    data.time = state["time"]
    mujoco.mj_forward(model, data)  # computes the arrays that are not saved
    for name, array in arrays.items():  # MuJoCo computed the saved values earlier in the step
        array[...] = state["data"][name]
    for name in _flags(data):
        setattr(data, name, state["flags"][name])


def _flags(data: mujoco.MjData) -> list[str]:
    """Return the names of the flags that say what MuJoCo has already computed."""
    return [name for name in dir(data) if name.startswith("flg_")]


def _fixed_size_arrays(model: mujoco.MjModel, data: mujoco.MjData) -> Arrays:
    """Return the arrays of `data` whose size is fixed by the model.

    The others hold the current contacts. They are not carried between steps, and recomputing them from
    the state gives the same values.
    """
    fixed = _named_arrays(mujoco.MjData(model))  # without contacts
    return {name: array for name, array in _named_arrays(data).items() if fixed[name].size > 0}


def _named_arrays(data: mujoco.MjData) -> Arrays:
    values = {name: getattr(data, name) for name in dir(data) if not name.startswith("_")}
    return {name: value for name, value in values.items() if isinstance(value, np.ndarray)}


def _fill(name: str, array: NDArray[Any], saved: Any) -> None:
    if not isinstance(saved, np.ndarray) or saved.shape != array.shape:
        raise ConfigError(
            f"the snapshot is of another simulation: {name} does not have shape {array.shape}; check env.*"
        )
    array[...] = saved
