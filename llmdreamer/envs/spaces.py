"""Translate gymnasium's spaces: observations into float32 and uint8 arrays, actions from rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmdreamer.errors import ConfigError

SUPPORTED_OBSERVATIONS = (
    "a Box of at most one dimension (a vector), a uint8 Box of three (an image), Discrete, "
    "or a Dict of these"
)
SUPPORTED_ACTIONS = "Discrete"


@dataclass(frozen=True)
class Observation:
    """How the values of one space become arrays.

    Box vectors are float32, images stay uint8, a Discrete value is one-hot, float32.
    """

    space: spaces.Box | spaces.Discrete[Any]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def encode(self, value: Any) -> NDArray[Any]:
        """Return a new array of `shape` and `dtype`.

        Raises:
            ValueError: if the value has not the space's shape, is not finite, or is no category.
        """
        if isinstance(self.space, spaces.Discrete):
            index = int(value) - int(self.space.start)
            if not 0 <= index < self.shape[0]:
                raise ValueError(f"observation {value} is outside {self.space}")
            return np.eye(self.shape[0], dtype=self.dtype)[index]
        raw = np.asarray(value)
        if raw.shape != self.space.shape:
            raise ValueError(f"observation of shape {raw.shape}, not {self.space.shape}")
        with np.errstate(over="ignore"):  # a float64 too large for float32 is seen just below
            array = raw.astype(self.dtype).reshape(self.shape)
        if not np.isfinite(array).all():
            raise ValueError("observation is not finite")
        return array


@dataclass(frozen=True)
class DiscreteActions:
    """One-hot rows (A,) for the actions `start` .. `start + A - 1`."""

    size: int
    start: int
    discrete: bool = True

    def decode(self, row: NDArray[np.float32]) -> int:
        """Return what the environment's `step` takes."""
        return int(row.argmax()) + self.start

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Return (count, A) actions, each equally likely."""
        return np.eye(self.size, dtype=np.float32)[rng.integers(self.size, size=count)]


def observation_keys(space: spaces.Space[Any]) -> dict[str, Observation]:
    """Name every part of an observation; a space that is no Dict is the single key `state`.

    Raises:
        ConfigError: if a part is of a kind that no encoder reads.
    """
    if isinstance(space, spaces.Dict):
        return {key: _observation(part, f" at key '{key}'") for key, part in space.spaces.items()}
    return {"state": _observation(space, "")}


def action_kind(space: spaces.Space[Any]) -> DiscreteActions:
    """Say how actions are written; the one place to add a kind of action space.

    Raises:
        ConfigError: if no actor acts in such a space.
    """
    if isinstance(space, spaces.Discrete):
        return DiscreteActions(size=int(space.n), start=int(space.start))
    raise ConfigError(f"unsupported action space {_name(space)}; supported: {SUPPORTED_ACTIONS}")


def _observation(space: spaces.Space[Any], where: str) -> Observation:
    if isinstance(space, spaces.Discrete):
        return Observation(space, (int(space.n),), np.dtype(np.float32))
    if isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3:
        return Observation(space, space.shape, np.dtype(np.uint8))
    if isinstance(space, spaces.Box) and len(space.shape) <= 1:
        return Observation(space, space.shape or (1,), np.dtype(np.float32))
    raise ConfigError(
        f"unsupported observation space {_name(space)}{where}; supported: {SUPPORTED_OBSERVATIONS}"
    )


def _name(space: spaces.Space[Any]) -> str:
    return " ".join(str(space).split())  # bounds of a large Box are printed on many lines
