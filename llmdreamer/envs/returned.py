"""Read what an environment returns: time steps, rewards, flags and images, checked and converted."""

from __future__ import annotations

import numbers
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class InvalidValueError(ValueError):
    """An environment returned a value that cannot be used. The message is one line."""


class InterfaceError(InvalidValueError):
    """A returned value has a type, shape or length that no time step of the environment may have."""


class NativeStep(NamedTuple):
    """One time step with the environment's own observation."""

    observation: Any
    reward: float  # may be infinite or NaN
    terminated: bool
    truncated: bool


def read_reset(result: Any) -> Any:
    """Return the observation of `reset`'s result.

    Raises:
        InterfaceError: if the result is not `(observation, info)`.
    """
    if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], Mapping):
        raise InterfaceError(
            f"reset returned {describe_value(result)}, not (observation, info) with info a dict"
            " (the interface before Gymnasium returned the observation alone)"
        )
    return result[0]


def read_step(result: Any) -> NativeStep:
    """Return `step`'s result with its reward and flags as Python values.

    Raises:
        InterfaceError: if the result has another number of values, or one of them has a wrong type.
    """
    if not isinstance(result, tuple | list) or len(result) != 5:
        count = len(result) if isinstance(result, tuple | list) else None
        values = describe_value(result) if count is None else f"{count} values"
        old = ""
        if count == 4:
            old = " (4 are the interface before Gymnasium: observation, reward, done, info)"
        raise InterfaceError(
            f"step returned {values}, not 5: observation, reward, terminated, truncated, info{old}"
        )
    observation, reward, terminated, truncated, _ = result
    return NativeStep(
        observation,
        read_reward(reward),
        _read_flag("terminated", terminated),
        _read_flag("truncated", truncated),
    )


def read_reward(value: Any) -> float:
    """Return a reward: a number, or an array with exactly one. An integer too large is infinite.

    Raises:
        InterfaceError: if it is something else.
    """
    return _read_number("reward", value)


def read_numbers(value: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return an observation as an array of real numbers; integers too large become infinite.

    Raises:
        InterfaceError: if it has another shape, or entries that are not real numbers.
    """
    try:
        raw = np.asarray(value)
    except Exception as error:  # NumPy calls methods of the value
        raise InterfaceError(
            f"observation is {describe_value(value)}, not an array of real numbers"
        ) from error
    if raw.dtype.kind == "O" and all(isinstance(item, numbers.Real) for item in raw.flat):
        raw = np.array([_to_float(item) for item in raw.flat], np.float64).reshape(raw.shape)
    if raw.dtype.kind not in "biuf":
        raise InterfaceError(
            f"observation is {describe_value(value)}, not an array of real numbers"
        )
    if raw.shape != shape:
        raise InterfaceError(f"observation has shape {raw.shape}, not {shape}")
    return raw


def read_image(value: Any) -> NDArray[np.uint8]:
    """Return what `render` returned, as an (H, W, 3) image.

    Raises:
        InterfaceError: if it is no uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
    """
    image = value if isinstance(value, np.ndarray) else None
    if image is None or image.dtype != np.uint8 or image.ndim not in (2, 3) or not image.size:
        raise InterfaceError(
            f"render returned {describe_value(value)}, not a uint8 image (H, W, 3)"
        )
    image = image[..., None] if image.ndim == 2 else image
    if image.shape[2] not in (1, 3, 4):
        raise InterfaceError(f"render returned an image of shape {image.shape}, not (H, W, 3)")
    image = image.repeat(3, 2) if image.shape[2] == 1 else image[..., :3]
    return np.ascontiguousarray(image)


def describe_value(value: Any) -> str:
    """Return a short description in one line. It does not fail, whatever the value."""
    if value is None:
        return "None"
    kind = type(value).__name__
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} values"
    try:
        text = " ".join(reprlib.repr(value).split())
    except Exception:  # noqa: BLE001 (the value's own `__repr__` may raise anything)
        text = ""
    return f"{text} ({kind})" if text else kind


def _read_number(name: str, value: Any) -> float:
    """Return one number. Other packages' scalars, such as 0-d tensors, are read through NumPy.

    Raises:
        InterfaceError: if it is not exactly one number.
    """
    if isinstance(value, numbers.Real):
        return _to_float(value)
    try:
        array = np.asarray(value)
        item = array.reshape(()).item() if array.size == 1 else None
    except Exception as error:
        raise InterfaceError(f"{name} is {describe_value(value)}, not a number") from error
    if array.dtype.kind not in "biuf" and not (
        array.dtype.kind == "O" and isinstance(item, numbers.Real)
    ):
        raise InterfaceError(f"{name} is {describe_value(value)}, not a number")
    if item is None:
        raise InterfaceError(f"{name} has {array.size} numbers (shape {array.shape}), not one")
    return _to_float(item)


def _read_flag(name: str, value: Any) -> bool:
    """Return a flag: a truth value, or the number 0 or 1.

    Raises:
        InterfaceError: if it is something else.
    """
    number = None
    if not isinstance(value, str):
        with suppress(InterfaceError):
            number = _read_number(name, value)
    if number not in (0.0, 1.0):
        raise InterfaceError(f"{name} is {describe_value(value)}, not True or False")
    return bool(number)


def _to_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer above 1.8e308
        return float("inf") if value > 0 else float("-inf")
