"""Translate actions: gymnasium's action spaces to and from rows of A numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmdreamer.utils.errors import ConfigError

SUPPORTED_ACTIONS = "Discrete, MultiDiscrete, and a Box of real numbers with finite bounds"


class Actions(Protocol):
    """How the actions of one space are written as rows."""

    @property
    def size(self) -> int:
        """A, numbers in a row."""
        ...

    @property
    def discrete(self) -> bool: ...

    @property
    def groups(self) -> tuple[int, ...]: ...

    def decode(self, row: NDArray[np.float32]) -> Any:
        """Return what the environment's `step` takes."""
        ...

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        """Return (count, A) actions, uniform over the space."""
        ...


@dataclass(frozen=True)
class DiscreteActions:
    """One-hot rows (A,) for the actions `start` .. `start + A - 1`."""

    size: int
    start: int
    discrete: bool = True
    groups: tuple[int, ...] = ()

    def decode(self, row: NDArray[np.float32]) -> int:
        return int(row.argmax()) + self.start

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        return _one_hot(rng, self.size, count)


@dataclass(frozen=True)
class MultiDiscreteActions:
    """Several choices at once: their one-hot rows side by side, in the space's (flattened) order."""

    space: spaces.MultiDiscrete
    groups: tuple[int, ...]
    discrete: bool = True

    @property
    def size(self) -> int:
        return sum(self.groups)

    def decode(self, row: NDArray[np.float32]) -> NDArray[Any]:
        parts = np.split(row, np.cumsum(self.groups)[:-1])
        chosen = np.array([part.argmax() for part in parts], self.space.dtype)
        start: NDArray[Any] = self.space.start
        return chosen.reshape(self.space.shape) + start

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        return np.concatenate([_one_hot(rng, group, count) for group in self.groups], 1)


@dataclass(frozen=True)
class BoxActions:
    """Numbers in [-1, 1], scaled linearly to the space's bounds and clipped to them.

    Source: danijar/dreamerv3 (2025), `NormalizeAction` and `ClipAction`: the policy's samples are
    not bounded, what is executed is.
    """

    space: spaces.Box
    discrete: bool = False
    groups: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return math.prod(self.space.shape)

    def decode(self, row: NDArray[np.float32]) -> NDArray[Any]:
        low, high = self.space.low.astype(np.float64), self.space.high.astype(np.float64)
        share = (np.clip(row.astype(np.float64), -1.0, 1.0).reshape(self.space.shape) + 1.0) / 2.0
        # Clipped once more: rounding to the space's type may step over a bound.
        taken = (low + share * (high - low)).astype(self.space.dtype)
        return np.clip(taken, self.space.low, self.space.high)

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        return rng.uniform(-1.0, 1.0, (count, self.size)).astype(np.float32)


def action_kind(space: spaces.Space[Any]) -> Actions:
    """Say how actions are written; the one place to add a kind of action space.

    Raises:
        ConfigError: if no actor acts in such a space.
    """
    if isinstance(space, spaces.Discrete):
        return DiscreteActions(size=int(space.n), start=int(space.start))
    if isinstance(space, spaces.MultiDiscrete):
        return MultiDiscreteActions(space, tuple(int(n) for n in space.nvec.flatten()))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ConfigError(
                f"unsupported action space {name_of(space)}: its bounds are not finite, so there is "
                "no scale to act on; wrap it in gymnasium.wrappers.RescaleAction"
            )
        if math.prod(space.shape) > 0:
            return BoxActions(space)
    raise ConfigError(f"unsupported action space {name_of(space)}; supported: {SUPPORTED_ACTIONS}")


def name_of(space: spaces.Space[Any]) -> str:
    """Return a space as one line: bounds of a large Box are printed on many."""
    return " ".join(str(space).split())


def _one_hot(rng: np.random.Generator, size: int, count: int) -> NDArray[np.float32]:
    return np.eye(size, dtype=np.float32)[rng.integers(size, size=count)]
