"""Translate Gymnasium observations into float32 vectors, uint8 images and UTF-8 bytes."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image

from llmdreamer.envs.actions import MAX_ONE_HOT, describe_space
from llmdreamer.envs.returned import (
    InterfaceError,
    InvalidValueError,
    describe_value,
    read_numbers,
)
from llmdreamer.types import Kind
from llmdreamer.utils.errors import ConfigError

SUPPORTED_OBSERVATIONS = (
    "Box of real numbers or integers, Discrete, MultiDiscrete, MultiBinary, Text, and a Dict or Tuple of"
    " these"
)
DEFAULT_KEYS: dict[Kind, str] = {"vector": "state", "image": "image", "text": "text"}
"""Key of an observation whose space is no Dict or Tuple, by its kind."""
FLOAT32, UINT8 = np.dtype(np.float32), np.dtype(np.uint8)

IMAGE_BOUNDS = ((0, 1), (-1, 1), (0, 255))
"""Bounds of a Box that is an image although its dtype is not uint8."""
MIN_IMAGE_SIDE = 16
"""Smallest height and width of such an image, in pixels. A smaller array is a vector."""

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
            InvalidValueError: if the value is outside the space or not finite; InterfaceError if its type
                or shape is wrong.
        """
        ...


@dataclass(frozen=True)
class Bounds:
    """The bounds of a Box. Many environments leave theirs, so a value outside them is no failure."""

    space: spaces.Box
    warned: list[str] = field(default_factory=list, compare=False)  # at most one

    def check(self, raw: NDArray[Any]) -> None:
        """Warn at the first value outside the bounds, with a tolerance for rounding."""
        if self._limits is None or self.warned:
            return
        low, high = self._limits
        outside = (raw < low) | (raw > high)
        if outside.any():
            value = raw[outside].flat[0]
            self.warned.append(str(value))
            log.warning(
                "the observation %s is outside its space %s (reported once)",
                value,
                describe_space(self.space),
            )

    @cached_property
    def _limits(self) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
        low, high = self.space.low.astype(np.float64), self.space.high.astype(np.float64)
        if np.isinf(low).all() and np.isinf(high).all():
            return None
        return low - 1e-6 * np.maximum(1, np.abs(low)), high + 1e-6 * np.maximum(1, np.abs(high))


@dataclass(frozen=True)
class VectorObservation:
    """A Box of any shape as float32 numbers in a row, optionally with one scale factor for each number."""

    space: spaces.Box
    bounds: Bounds
    scale: tuple[float, ...] = ()  # empty: no scaling
    kind: Kind = "vector"
    dtype: np.dtype[Any] = FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        return (math.prod(self.space.shape),)

    def encode(self, value: Any) -> NDArray[Any]:
        raw = read_numbers(value, self.space.shape)
        with np.errstate(over="ignore"):  # overflow to infinity is caught below
            array = raw.astype(self.dtype).reshape(self.shape)
            if self.scale:
                array *= np.asarray(self.scale, self.dtype)
        if not np.isfinite(array).all():
            raise InvalidValueError(
                f"observation is not finite ({'NaN' if np.isnan(array).any() else 'infinite'})"
            )
        self.bounds.check(raw)
        return array


@dataclass(frozen=True)
class OneHotObservation:
    """Integers as float32 one-hot vectors side by side: Discrete has one, MultiDiscrete several.

    Integer i is one of `sizes[i]` values that begin at `starts[i]`.
    """

    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    value_shape: tuple[int, ...]  # of the environment's observation
    kind: Kind = "vector"
    dtype: np.dtype[Any] = FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(self.sizes),)

    def encode(self, value: Any) -> NDArray[Any]:
        raw = read_numbers(value, self.value_shape).ravel()
        one_hots = np.zeros(self.shape, self.dtype)
        offset = 0
        for number, size, start in zip(raw, self.sizes, self.starts, strict=True):
            if not (start <= number < start + size and number == int(number)):
                raise InvalidValueError(
                    f"observation {number} is not one of the integers {start} to {start + size - 1}"
                )
            one_hots[offset + int(number) - start] = 1.0
            offset += size
        return one_hots


@dataclass(frozen=True)
class ImageObservation:
    """A Box (H, W), (H, W, C) or (C, H, W) as an image (size, size, C), or a stack of N of them as N * C.

    Two equal neighboring axes are height and width; if the first two are equal, the channels are last.
    Otherwise the channels are the shorter of the first and the last axis. Shrinking averages over each new
    pixel's area, enlarging repeats the nearest pixel. Values that are not uint8 are scaled from the
    space's bounds to 0..255 and rounded.
    """

    space: spaces.Box
    size: int
    bounds: Bounds
    kind: Kind = "image"
    dtype: np.dtype[Any] = UINT8

    @property
    def _frame_shape(self) -> tuple[int, ...]:
        """The shape of one image of the stack."""
        return self.space.shape[-3:]

    @property
    def shape(self) -> tuple[int, ...]:
        frames = self.space.shape[0] if len(self.space.shape) == 4 else 1
        return (self.size, self.size, frames * _channels(self._frame_shape))

    def encode(self, value: Any) -> NDArray[Any]:
        pixels = self._to_bytes(read_numbers(value, self.space.shape))
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if _channels_first(self._frame_shape):
            pixels = np.moveaxis(pixels, -3, -1)
        if pixels.ndim == 4:
            pixels = np.concatenate(list(pixels), -1)
        return pixels.copy() if pixels.shape == self.shape else resize(pixels, self.size)

    def _to_bytes(self, raw: NDArray[Any]) -> NDArray[np.uint8]:
        if self.space.dtype == self.dtype:
            if raw.dtype != self.dtype:
                raise InterfaceError(f"observation has dtype {raw.dtype}, not uint8")
            return raw
        if not np.isfinite(raw).all():
            raise InvalidValueError("observation is not finite")
        self.bounds.check(raw)
        low, high = float(self.space.low.flat[0]), float(self.space.high.flat[0])
        fraction = (np.clip(raw.astype(np.float64), low, high) - low) / (high - low)
        return np.rint(255 * fraction).astype(self.dtype)


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
            raise InterfaceError(f"observation is {describe_value(value)}, not str (a text)")
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


KeyPath = tuple[Any, ...]
"""Keys of Dicts and indices of Tuples that lead to an observation."""


class Observations(Mapping[str, ObservationEncoding]):
    """The encodings of a whole observation space by key, in the space's order.

    The key of an observation in nested spaces is its path, joined by dots: `a.b`, `a.0`.
    """

    def __init__(
        self, encodings: Mapping[str, ObservationEncoding], paths: Mapping[str, KeyPath]
    ) -> None:
        self._encodings, self._paths = dict(encodings), dict(paths)

    def __getitem__(self, key: str) -> ObservationEncoding:
        return self._encodings[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._encodings)

    def __len__(self) -> int:
        return len(self._encodings)

    def encode(self, observation: Any) -> dict[str, NDArray[Any]]:
        """Return the arrays of one observation by key.

        Raises:
            InvalidValueError: as `ObservationEncoding.encode`; the message names the key.
        """
        arrays = {}
        for key, encoding in self._encodings.items():
            try:
                arrays[key] = encoding.encode(_follow(observation, self._paths[key]))
            except InvalidValueError as error:
                raise type(error)(f"key '{key}': {error}") from error
        return arrays


def observation_encodings(
    space: spaces.Space[Any],
    image_size: int,
    max_text_bytes: int,
    vector_scale: Mapping[str, Sequence[float]] | None = None,
) -> Observations:
    """Return the encoding of each key. A space that is no Dict or Tuple has one key, named by its kind.

    Args:
        vector_scale: scale factors of vectors by key, one for each number.

    Raises:
        ConfigError: if a space is not supported, two observations have the same key, or `vector_scale`
            does not fit its vector.
    """
    encodings: dict[str, ObservationEncoding] = {}
    paths: dict[str, KeyPath] = {}
    for path, inner in _leaves(space, ()):
        key = ".".join(map(str, path))
        encoding = _encoding_of(
            inner, f" at key '{key}'" if path else "", image_size, max_text_bytes
        )
        key = key if path else DEFAULT_KEYS[encoding.kind]
        if key in encodings:
            raise ConfigError(
                f"two observations have the key '{key}': rename one in the environment"
            )
        encodings[key], paths[key] = encoding, path
    if not encodings:
        raise ConfigError(f"the observation space {describe_space(space)} is empty")
    for key, scale in (vector_scale or {}).items():
        encodings[key] = _with_scale(encodings, key, scale)
    return Observations(encodings, paths)


def _leaves(space: spaces.Space[Any], path: KeyPath) -> Iterator[tuple[KeyPath, spaces.Space[Any]]]:
    """Yield the spaces inside nested Dicts and Tuples with their paths."""
    children: Sequence[tuple[Any, spaces.Space[Any]]]
    if isinstance(space, spaces.Dict):
        children = list(space.spaces.items())
    elif isinstance(space, spaces.Tuple):
        children = [*enumerate(space.spaces)]
    else:
        yield path, space
        return
    for name, child in children:
        yield from _leaves(child, (*path, name))


def _follow(observation: Any, path: KeyPath) -> Any:
    """Return the part of a nested observation at a path.

    Raises:
        InterfaceError: if it has no such part.
    """
    for name in path:
        try:
            observation = observation[name]
        except (KeyError, IndexError, TypeError) as error:
            raise InterfaceError(
                f"observation is {describe_value(observation)} and has no {name!r}"
            ) from error
    return observation


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


def _encoding_of(
    space: spaces.Space[Any], where: str, image_size: int, max_text_bytes: int
) -> ObservationEncoding:
    encoding = _find_encoding(space, image_size, max_text_bytes)
    if encoding is None:
        raise ConfigError(
            f"unsupported observation space {describe_space(space)}{where}; "
            f"supported: {SUPPORTED_OBSERVATIONS}"
        )
    if 0 in (*encoding.shape, *(space.shape or ())):
        raise ConfigError(
            f"unsupported observation space {describe_space(space)}{where}: it has no numbers"
        )
    if isinstance(encoding, OneHotObservation) and encoding.shape[0] > MAX_ONE_HOT:
        raise ConfigError(
            f"unsupported observation space {describe_space(space)}{where}: it has"
            f" {encoding.shape[0]} values, at most {MAX_ONE_HOT} are supported"
        )
    return encoding


def _find_encoding(
    space: object, image_size: int, max_text_bytes: int
) -> ObservationEncoding | None:
    if not isinstance(space, spaces.Space):
        return None
    if isinstance(space, spaces.Discrete):
        return OneHotObservation((int(space.n),), (int(space.start),), ())
    if isinstance(space, spaces.MultiDiscrete):
        sizes, starts = (tuple(map(int, array.flat)) for array in (space.nvec, space.start))
        return OneHotObservation(sizes, starts, space.nvec.shape)
    if isinstance(space, spaces.MultiBinary):
        space = spaces.Box(0, 1, space.shape, np.int8)
    # Besides gymnasium's Text: MiniGrid's MissionSpace is a custom space with dtype str.
    if isinstance(space, spaces.Text) or getattr(space.dtype, "kind", None) == "U":
        return TextObservation((max_text_bytes,))
    if not isinstance(space, spaces.Box):
        return None
    if _is_image(space):
        return ImageObservation(space, image_size, Bounds(space))
    return VectorObservation(space, Bounds(space))


def _is_image(space: spaces.Box) -> bool:
    """Return True for uint8 arrays of 2 to 4 dimensions, and for other arrays that look like images.

    Those have three dimensions, at least 16 pixels a side, fewer channels than pixels a side, and the
    bounds of an image.
    """
    shape = space.shape
    if space.dtype == np.uint8:
        return 2 <= len(shape) <= 4
    if len(shape) != 3:
        return False
    sides = shape[1:] if _channels_first(shape) else shape[:2]
    low, high = np.unique(space.low), np.unique(space.high)
    bounds = (low[0], high[0]) if len(low) == len(high) == 1 else None
    return min(sides) >= MIN_IMAGE_SIDE and _channels(shape) < min(sides) and bounds in IMAGE_BOUNDS


def _channels_first(shape: tuple[int, ...]) -> bool:
    if len(shape) == 2 or shape[0] == shape[1]:
        return False
    return shape[1] == shape[2] or shape[0] < shape[2]


def _channels(shape: tuple[int, ...]) -> int:
    return 1 if len(shape) == 2 else shape[0] if _channels_first(shape) else shape[2]
