"""Translate Gymnasium's action spaces to and from vectors of A numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmdreamer.utils.errors import ConfigError

SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, and a Box of real numbers with finite bounds"


class ActionEncoding(Protocol):
    """Encoding of one action space as vectors of A numbers."""

    @property
    def size(self) -> int:
        """A, the length of an action vector."""
        ...

    @property
    def discrete(self) -> bool: ...

    @property
    def groups(self) -> tuple[int, ...]: ...

    def decode(self, vector: NDArray[np.float32]) -> Any:
        """Return the action that the environment's `step` takes."""
        ...

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Return (count, A) actions, uniform over the space."""
        ...


@dataclass(frozen=True)
class DiscreteActions:
    """One-hot vectors (A,) for the actions `start` .. `start + A - 1`."""

    size: int
    start: int
    discrete: bool = True
    groups: tuple[int, ...] = ()

    def decode(self, vector: NDArray[np.float32]) -> int:
        return int(vector.argmax()) + self.start

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        return _random_one_hot(rng, self.size, count)


@dataclass(frozen=True)
class MultiDiscreteActions:
    """Several choices at once: their one-hot vectors side by side, in the order of the flattened space."""

    space: spaces.MultiDiscrete
    groups: tuple[int, ...]
    discrete: bool = True

    @property
    def size(self) -> int:
        return sum(self.groups)

    def decode(self, vector: NDArray[np.float32]) -> NDArray[Any]:
        one_hots = np.split(vector, np.cumsum(self.groups)[:-1])
        choices = np.array([one_hot.argmax() for one_hot in one_hots], self.space.dtype)
        start: NDArray[Any] = self.space.start
        return choices.reshape(self.space.shape) + start

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        return np.concatenate([_random_one_hot(rng, group, count) for group in self.groups], 1)


@dataclass(frozen=True)
class BoxActions:
    """Numbers in [-1, 1], scaled linearly to the space's bounds and clipped to them.

    Source: danijar/dreamerv3 (2025), `NormalizeAction` and `ClipAction`: the policy's samples are
    not bounded, the executed actions are.
    """

    space: spaces.Box
    discrete: bool = False
    groups: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.space.shape)

    def decode(self, vector: NDArray[np.float32]) -> NDArray[Any]:
        low, high = self.space.low.astype(np.float64), self.space.high.astype(np.float64)
        fraction = (
            np.clip(vector.astype(np.float64), -1.0, 1.0).reshape(self.space.shape) + 1.0
        ) / 2.0
        # Clipped once more: rounding to the space's dtype may exceed a bound.
        action = (low + fraction * (high - low)).astype(self.space.dtype)
        return np.clip(action, self.space.low, self.space.high)

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        return rng.uniform(-1.0, 1.0, (count, self.size)).astype(np.float32)


def action_encoding(space: spaces.Space[Any]) -> ActionEncoding:
    """Return the encoding of an action space. New kinds of action spaces are added here.

    Raises:
        ConfigError: if the space is not supported.
    """
    if isinstance(space, spaces.Discrete):
        return DiscreteActions(size=int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return MultiDiscreteActions(space, tuple(int(n) for n in space.nvec.flatten()))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ConfigError(
                f"unsupported action space {describe_space(space)}: its bounds are not finite, so "
                "actions have no scale; bound it with gymnasium.wrappers.TransformAction and a finite Box"
            )
        if math.prod(space.shape) > 0:
            return BoxActions(space)
    raise ConfigError(
        f"unsupported action space {describe_space(space)}; supported: {SUPPORTED_ACTIONS}"
    )


def describe_space(space: spaces.Space[Any]) -> str:
    """Return a space as one line; Gymnasium prints the bounds of a large Box on several."""
    return " ".join(str(space).split())


def _random_one_hot(rng: np.random.Generator, size: int, count: int) -> NDArray[np.float32]:
    return np.eye(size, dtype=np.float32)[rng.integers(size, size=count)]
