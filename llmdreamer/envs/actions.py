"""Translate Gymnasium's action spaces to and from vectors of A numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmdreamer.utils.errors import ConfigError

SUPPORTED_ACTIONS = (
    "Discrete, MultiDiscrete, MultiBinary, and a Box of real numbers or integers with bounds"
)

MAX_ONE_HOT = 2**16
"""Largest number of entries of the one-hot vectors of one space."""

MAX_BOX_CHOICES = 256
"""An integer of a Box with at most so many values is a choice. With more, it is a rounded real number."""

MAX_BOUND = 1e15
"""A larger bound, such as float32's largest number 3.4e38, stands for no bound."""


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
    """Several choices at once: their one-hot vectors side by side, in the order of the flattened space.

    Choice i of `groups[i]` is an integer that begins at `starts[i]`.
    """

    groups: tuple[int, ...]
    starts: tuple[int, ...]
    shape: tuple[int, ...]  # of the environment's action
    dtype: np.dtype[Any]
    discrete: bool = True

    @property
    def size(self) -> int:
        return sum(self.groups)

    def decode(self, vector: NDArray[np.float32]) -> NDArray[Any]:
        one_hots = np.split(vector, np.cumsum(self.groups)[:-1])
        pairs = zip(one_hots, self.starts, strict=True)
        # Added as Python integers: in int8, a choice of 200 from a start of -128 would overflow.
        choices = [int(one_hot.argmax()) + start for one_hot, start in pairs]
        return np.array(choices, self.dtype).reshape(self.shape)

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        return np.concatenate([_random_one_hot(rng, group, count) for group in self.groups], 1)


@dataclass(frozen=True)
class BoxActions:
    """Numbers in [-1, 1], scaled linearly to the space's bounds and clipped to them.

    The actions of an integer Box are rounded.

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
        scaled = low + fraction * (high - low)
        if _is_integer(self.space):
            scaled = np.rint(scaled)
        # Clipped once more: rounding to the space's dtype may exceed a bound.
        return np.clip(scaled.astype(self.space.dtype), self.space.low, self.space.high)

    def sample(self, rng: np.random.Generator, count: int) -> NDArray[np.float32]:
        return rng.uniform(-1.0, 1.0, (count, self.size)).astype(np.float32)


def action_encoding(space: spaces.Space[Any]) -> ActionEncoding:
    """Return the encoding of an action space. New kinds of action spaces are added here.

    Raises:
        ConfigError: if the space is not supported.
    """
    if isinstance(space, spaces.Discrete):
        encoding: ActionEncoding = DiscreteActions(size=int(space.n), start=int(space.start))
    elif isinstance(space, spaces.MultiDiscrete):
        encoding = _choices(space.nvec, space.start, space.dtype)
    elif isinstance(space, spaces.MultiBinary):
        encoding = _choices(np.full(space.shape, 2), np.zeros(space.shape, int), space.dtype)
    elif isinstance(space, spaces.Box):
        encoding = _box_encoding(space)
    else:
        raise ConfigError(
            f"unsupported action space {describe_space(space)}; supported: {SUPPORTED_ACTIONS}"
        )
    if encoding.size == 0:
        raise ConfigError(f"unsupported action space {describe_space(space)}: it has no numbers")
    if encoding.size > MAX_ONE_HOT:
        raise ConfigError(
            f"unsupported action space {describe_space(space)}: it has {encoding.size} numbers,"
            f" at most {MAX_ONE_HOT} are supported"
        )
    return encoding


def describe_space(space: object) -> str:
    """Return a space as one line; Gymnasium prints the bounds of a large Box on several."""
    if not isinstance(space, spaces.Space):
        return f"{type(space).__name__} (not a space of Gymnasium)"
    return " ".join(str(space).split())


def _box_encoding(space: spaces.Box) -> ActionEncoding:
    if _is_integer(space):
        pairs = zip(space.low.flat, space.high.flat, strict=True)
        counts = [int(high) - int(low) + 1 for low, high in pairs]  # may exceed every integer dtype
        if max(counts, default=0) <= MAX_BOX_CHOICES:
            return _choices(np.reshape(counts, space.shape), space.low, space.dtype)
    if not _has_scale(space):
        raise ConfigError(
            f"unsupported action space {describe_space(space)}: its bounds are not finite, so actions have"
            " no scale; give it bounds with gymnasium.wrappers.TransformAction(env, lambda action: action,"
            f" gymnasium.spaces.Box({_example_arguments(space)}))"
        )
    return BoxActions(space)


def _choices(counts: NDArray[Any], starts: NDArray[Any], dtype: Any) -> MultiDiscreteActions:
    return MultiDiscreteActions(
        groups=tuple(int(count) for count in counts.flat),
        starts=tuple(int(start) for start in starts.flat),
        shape=counts.shape,
        dtype=np.dtype(dtype),
    )


def _has_scale(space: spaces.Box) -> bool:
    """Return False if a bound is missing. The extremes of wide integers stand for none, too."""
    bounds = np.concatenate([space.low.ravel(), space.high.ravel()])
    if not (np.isfinite(bounds).all() and (np.abs(bounds.astype(np.float64)) <= MAX_BOUND).all()):
        return False
    if not _is_integer(space) or space.dtype.itemsize < 4:
        return True
    limits = np.iinfo(str(space.dtype))
    return not (
        (space.high == limits.max).any() or (limits.min < 0 and (space.low == limits.min).any())
    )


def _is_integer(space: spaces.Box) -> bool:
    return space.dtype.kind in "iub"


def _example_arguments(space: spaces.Box) -> str:
    """Return the arguments of a bounded Box of the same shape and dtype."""
    low = 0 if space.dtype.kind == "u" else -1
    return f"{low}, 1, {space.shape}, '{space.dtype}'"


def _random_one_hot(rng: np.random.Generator, size: int, count: int) -> NDArray[np.float32]:
    one_hot = np.zeros((count, size), np.float32)
    one_hot[np.arange(count), rng.integers(size, size=count)] = 1.0
    return one_hot
