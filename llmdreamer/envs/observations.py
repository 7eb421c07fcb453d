"""Translate observations: gymnasium's spaces into float32 vectors, uint8 images and UTF-8 bytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from llmdreamer.envs.actions import name_of
from llmdreamer.types import Kind
from llmdreamer.utils.errors import ConfigError

SUPPORTED_OBSERVATIONS = (
    "a Box of at most one dimension (a vector), a uint8 Box of two or three (an image), Discrete, "
    "Text, or a Dict of these"
)
PLAIN_NAMES: dict[Kind, str] = {"vector": "state", "image": "image", "text": "text"}
FLOAT, BYTE = np.dtype(np.float32), np.dtype(np.uint8)

log = logging.getLogger(__name__)


class Observation(Protocol):
    """How the values of one space become arrays of one shape and type."""

    @property
    def kind(self) -> Kind: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def encode(self, value: Any) -> NDArray[Any]:
        """Return a new array of `shape` and `dtype`.

        Raises:
            ValueError: if the value is not of the space, or not finite.
        """
        ...


@dataclass(frozen=True)
class Vector:
    """A Box of at most one dimension, in float32, each number multiplied by a factor of its own."""

    space: spaces.Box
    scale: tuple[float, ...] = ()  # none: the numbers as they come
    kind: Kind = "vector"
    dtype: np.dtype[Any] = FLOAT

    @property
    def shape(self) -> tuple[int, ...]:
        return self.space.shape or (1,)

    def encode(self, value: Any) -> NDArray[Any]:
        raw = _of_shape(value, self.space.shape)
        with np.errstate(over="ignore"):  # a float64 too large for float32 is seen just below
            array = raw.astype(self.dtype).reshape(self.shape)
            if self.scale:
                array *= np.asarray(self.scale, self.dtype)
        if not np.isfinite(array).all():
            raise ValueError(
                f"observation is not finite ({'NaN' if np.isnan(array).any() else 'infinite'})"
            )
        return array


@dataclass(frozen=True)
class OneHot:
    """A Discrete value, one-hot in float32."""

    space: spaces.Discrete[Any]
    kind: Kind = "vector"
    dtype: np.dtype[Any] = FLOAT

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.space.n),)

    def encode(self, value: Any) -> NDArray[Any]:
        index = int(value) - int(self.space.start)
        if not 0 <= index < self.shape[0]:
            raise ValueError(f"observation {value} is outside {self.space}")
        return np.eye(self.shape[0], dtype=self.dtype)[index]


@dataclass(frozen=True)
class Picture:
    """A uint8 Box (H, W), (H, W, C) or (C, H, W), as (size, size, C).

    Channels are the axis beside a square, the last if the first two are equal, else the shorter of the first
    and the last. A picture of another size is averaged over the area of each new pixel (enlarged: its
    nearest pixel).
    """

    space: spaces.Box
    size: int
    kind: Kind = "image"
    dtype: np.dtype[Any] = BYTE

    @property
    def _channels_first(self) -> bool:
        shape = self.space.shape
        if len(shape) == 2 or shape[0] == shape[1]:
            return False
        return shape[1] == shape[2] or shape[0] < shape[2]

    @property
    def shape(self) -> tuple[int, ...]:
        shape = self.space.shape
        channels = 1 if len(shape) == 2 else shape[0] if self._channels_first else shape[2]
        return (self.size, self.size, channels)

    def encode(self, value: Any) -> NDArray[Any]:
        raw = _of_shape(value, self.space.shape)
        if raw.dtype != self.dtype:
            raise ValueError(f"observation of type {raw.dtype}, not uint8")
        raw = raw[..., None] if raw.ndim == 2 else raw
        raw = raw.transpose(1, 2, 0) if self._channels_first else raw
        return raw.copy() if raw.shape == self.shape else resize(raw, self.size)


@dataclass(frozen=True)
class Words:
    """A text, as the UTF-8 bytes of its first characters, zeros behind them.

    Bytes and not tokens: what is stored does not depend on who will read it.
    """

    shape: tuple[int, ...]  # (bytes,)
    kind: Kind = "text"
    dtype: np.dtype[Any] = BYTE
    warned: list[str] = field(default_factory=list, compare=False)  # the first text that was cut

    def encode(self, value: Any) -> NDArray[Any]:
        if not isinstance(value, str):
            raise ValueError(f"observation of type {type(value).__name__}, not a text")
        room = self.shape[0]
        # NUL is what stands behind a text, so none may stand in it.
        whole = value.replace("\0", " ").encode("utf-8", "replace")
        kept = whole[:room].decode("utf-8", "ignore").encode()  # no half of a character at the end
        if len(whole) > room and not self.warned:
            self.warned.append(value)
            log.warning(
                "a text of %d bytes is cut to env.max_text_bytes=%d: %r", len(whole), room, value
            )
        row = np.zeros(room, self.dtype)
        row[: len(kept)] = np.frombuffer(kept, self.dtype)
        return row


def resize(picture: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Area-averaged to (size, size, C). Channels do not mix, whatever they mean."""
    planes = [picture] if picture.shape[2] == 3 else np.split(picture, picture.shape[2], 2)
    scaled = [
        np.asarray(
            Image.fromarray(plane.squeeze()).resize((size, size), Image.Resampling.BOX)
        ).reshape(size, size, -1)
        for plane in map(np.ascontiguousarray, planes)
    ]
    return np.concatenate(scaled, -1)


def observation_keys(
    space: spaces.Space[Any],
    image_size: int,
    max_text_bytes: int,
    vector_scale: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Observation]:
    """Name every part of an observation; a space that is no Dict is one key, named by its kind.

    Args:
        vector_scale: factors of the vectors under these keys, one for each number.

    Raises:
        ConfigError: if a part is of a kind that no encoder reads, or is no vector of as many numbers
            as `vector_scale` has factors for it.
    """

    def part(inner: spaces.Space[Any], where: str) -> Observation:
        found = _observation(inner, image_size, max_text_bytes)
        if found is None:
            raise ConfigError(
                f"unsupported observation space {name_of(inner)}{where}; "
                f"supported: {SUPPORTED_OBSERVATIONS}"
            )
        return found

    if isinstance(space, spaces.Dict):
        keys = {key: part(inner, f" at key '{key}'") for key, inner in space.spaces.items()}
    else:
        only = part(space, "")
        keys = {PLAIN_NAMES[only.kind]: only}
    scaled = {key: _scaled(keys, key, scale) for key, scale in (vector_scale or {}).items()}
    return keys | scaled


def _scaled(keys: Mapping[str, Observation], key: str, factors: Sequence[float]) -> Vector:
    vector, name = keys.get(key), f"env.vector_scale.{key}={list(factors)}"
    if not isinstance(vector, Vector):
        boxes = [other for other, part in keys.items() if isinstance(part, Vector)]
        raise ConfigError(f"{name}: the environment's vectors are {boxes}")
    if (len(factors),) != vector.shape:
        raise ConfigError(f"{name}: {len(factors)} factors for {vector.shape[0]} numbers")
    return replace(vector, scale=tuple(factors))


def _observation(
    space: spaces.Space[Any], image_size: int, max_text_bytes: int
) -> Observation | None:
    if isinstance(space, spaces.Discrete):
        return OneHot(space)
    # Not only gymnasium's Text: MiniGrid's MissionSpace is a space of its own whose type is str.
    if isinstance(space, spaces.Text) or (space.dtype is not None and space.dtype.kind == "U"):
        return Words((max_text_bytes,))
    if not isinstance(space, spaces.Box):
        return None
    if len(space.shape) <= 1:
        return Vector(space)
    if space.dtype == np.uint8 and len(space.shape) <= 3:
        return Picture(space, image_size)
    return None


def _of_shape(value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    raw = np.asarray(value)
    if raw.shape != shape:
        raise ValueError(f"observation of shape {raw.shape}, not {shape}")
    return raw
