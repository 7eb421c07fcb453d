"""Translate Gymnasium observations into float32 vectors, uint8 images and UTF-8 bytes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from llmdreamer.envs.actions import describe_space
from llmdreamer.types import Kind
from llmdreamer.utils.errors import ConfigError

SUPPORTED_OBSERVATIONS = (
    "a Box of at most one dimension (a vector), a uint8 Box of two or three (an image), Discrete, "
    "Text, or a Dict of these"
)
DEFAULT_KEYS: dict[Kind, str] = {"vector": "state", "image": "image", "text": "text"}
"""Key of an observation whose space is no Dict, by its kind."""
FLOAT32, UINT8 = np.dtype(np.float32), np.dtype(np.uint8)

log = logging.getLogger(__name__)


class ObservationEncoding(Protocol):
    """Encoding of one observation space as arrays of one shape and dtype."""

    @property
    def kind(self) -> Kind: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def encode(self, value: Any) -> NDArray[Any]:
        """Return a new array of `shape` and `dtype`.

        Raises:
            ValueError: if the value is outside the space or not finite.
        """
        ...


@dataclass(frozen=True)
class VectorObservation:
    """A Box of at most one dimension as float32, optionally with one scale factor for each number."""

    space: spaces.Box
    scale: tuple[float, ...] = ()  # empty: no scaling
    kind: Kind = "vector"
    dtype: np.dtype[Any] = FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        return self.space.shape or (1,)

    def encode(self, value: Any) -> NDArray[Any]:
        raw = _check_shape(value, self.space.shape)
        with np.errstate(over="ignore"):  # overflow to infinity is caught below
            array = raw.astype(self.dtype).reshape(self.shape)
            if self.scale:
                array *= np.asarray(self.scale, self.dtype)
        if not np.isfinite(array).all():
            raise ValueError(
                f"observation is not finite ({'NaN' if np.isnan(array).any() else 'infinite'})"
            )
        return array


@dataclass(frozen=True)
class OneHotObservation:
    """A Discrete value as a float32 one-hot vector."""

    space: spaces.Discrete[Any]
    kind: Kind = "vector"
    dtype: np.dtype[Any] = FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        return (int(self.space.n),)

    def encode(self, value: Any) -> NDArray[Any]:
        index = int(value) - int(self.space.start)
        if not 0 <= index < self.shape[0]:
            raise ValueError(f"observation {value} is outside {self.space}")
        return np.eye(self.shape[0], dtype=self.dtype)[index]


@dataclass(frozen=True)
class ImageObservation:
    """A uint8 Box (H, W), (H, W, C) or (C, H, W) as an image (size, size, C).

    Two equal neighboring axes are height and width; if the first two are equal, the channels are last.
    Otherwise the channels are the shorter of the first and the last axis. Shrinking averages over each new
    pixel's area, enlarging repeats the nearest pixel.
    """

    space: spaces.Box
    size: int
    kind: Kind = "image"
    dtype: np.dtype[Any] = UINT8

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
        raw = _check_shape(value, self.space.shape)
        if raw.dtype != self.dtype:
            raise ValueError(f"observation has dtype {raw.dtype}, not uint8")
        raw = raw[..., None] if raw.ndim == 2 else raw
        raw = raw.transpose(1, 2, 0) if self._channels_first else raw
        return raw.copy() if raw.shape == self.shape else resize(raw, self.size)


@dataclass(frozen=True)
class TextObservation:
    """A text as UTF-8 bytes, cut at a character boundary and padded with zeros.

    Bytes, not tokens: the replay does not depend on a tokenizer.
    """

    shape: tuple[int, ...]  # (bytes,)
    kind: Kind = "text"
    dtype: np.dtype[Any] = UINT8
    cut_texts: list[str] = field(default_factory=list, compare=False)  # at most one: warns once

    def encode(self, value: Any) -> NDArray[Any]:
        if not isinstance(value, str):
            raise ValueError(f"observation has type {type(value).__name__}, not str (a text)")
        max_bytes = self.shape[0]
        # NUL is the padding, so the text must not contain it.
        encoded = value.replace("\0", " ").encode("utf-8", "replace")
        kept = encoded[:max_bytes].decode("utf-8", "ignore").encode()  # drops a cut character
        if len(encoded) > max_bytes and not self.cut_texts:
            self.cut_texts.append(value)
            log.warning(
                "a text of %d bytes is cut to env.max_text_bytes=%d: %r",
                len(encoded),
                max_bytes,
                value,
            )
        padded = np.zeros(max_bytes, self.dtype)
        padded[: len(kept)] = np.frombuffer(kept, self.dtype)
        return padded


def resize(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resize an (H, W, C) image to (size, size, C) by area averaging, each channel independently."""
    planes = [image] if image.shape[2] == 3 else np.split(image, image.shape[2], 2)
    scaled = [
        np.asarray(
            Image.fromarray(plane.squeeze()).resize((size, size), Image.Resampling.BOX)
        ).reshape(size, size, -1)
        for plane in map(np.ascontiguousarray, planes)
    ]
    return np.concatenate(scaled, -1)


def observation_encodings(
    space: spaces.Space[Any],
    image_size: int,
    max_text_bytes: int,
    vector_scale: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, ObservationEncoding]:
    """Return the encoding of each key. A space that is no Dict has one key, named by its kind.

    Args:
        vector_scale: scale factors of vectors by key, one for each number.

    Raises:
        ConfigError: if a space is not supported, or `vector_scale` does not fit its vector.
    """

    def encoding_of(inner: spaces.Space[Any], where: str) -> ObservationEncoding:
        encoding = _find_encoding(inner, image_size, max_text_bytes)
        if encoding is None:
            raise ConfigError(
                f"unsupported observation space {describe_space(inner)}{where}; "
                f"supported: {SUPPORTED_OBSERVATIONS}"
            )
        return encoding

    if isinstance(space, spaces.Dict):
        encodings = {
            key: encoding_of(inner, f" at key '{key}'") for key, inner in space.spaces.items()
        }
    else:
        encoding = encoding_of(space, "")
        encodings = {DEFAULT_KEYS[encoding.kind]: encoding}
    scaled = {
        key: _with_scale(encodings, key, scale) for key, scale in (vector_scale or {}).items()
    }
    return encodings | scaled


def _with_scale(
    encodings: Mapping[str, ObservationEncoding], key: str, factors: Sequence[float]
) -> VectorObservation:
    vector, setting = encodings.get(key), f"env.vector_scale.{key}={list(factors)}"
    if not isinstance(vector, VectorObservation):
        vectors = [name for name, item in encodings.items() if isinstance(item, VectorObservation)]
        raise ConfigError(f"{setting}: the environment's vectors are {vectors}")
    if (len(factors),) != vector.shape:
        raise ConfigError(f"{setting}: {len(factors)} factors for {vector.shape[0]} numbers")
    return replace(vector, scale=tuple(factors))


def _find_encoding(
    space: spaces.Space[Any], image_size: int, max_text_bytes: int
) -> ObservationEncoding | None:
    if isinstance(space, spaces.Discrete):
        return OneHotObservation(space)
    # Besides gymnasium's Text: MiniGrid's MissionSpace is a custom space with dtype str.
    if isinstance(space, spaces.Text) or (space.dtype is not None and space.dtype.kind == "U"):
        return TextObservation((max_text_bytes,))
    if not isinstance(space, spaces.Box):
        return None
    if len(space.shape) <= 1:
        return VectorObservation(space)
    if space.dtype == np.uint8 and len(space.shape) <= 3:
        return ImageObservation(space, image_size)
    return None


def _check_shape(value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    raw = np.asarray(value)
    if raw.shape != shape:
        raise ValueError(f"observation has shape {raw.shape}, not {shape}")
    return raw
