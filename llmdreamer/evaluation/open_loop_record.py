"""What a world model foretold without looking, and how wrong it was: plain arrays, kept in one file."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdreamer.utils.errors import ConfigError

Array = NDArray[Any]
FILE = "open_loop.npz"
"""In a run's folder and among its artifacts."""

REWARD, CONTINUE = "reward", "continue"
UNITS = {
    "vector": "RMSE (sd of the observation)",
    "image": "mean squared error of pixels in [0, 1]",
    REWARD: "mean absolute error (reward)",
    CONTINUE: "accuracy (share right)",
}
"""By the first part of a quantity's name: `vector/KEY`, `image/KEY`, `reward`, `continue`."""


@dataclass(frozen=True)
class Errors:
    """Of one quantity, 1..H steps after the last look. Each (H,), NaN where nothing was to compare."""

    imagined: Array  # each imagined trajectory by itself, not their mean
    repeated: Array  # what was last seen, said again; that the episode goes on
    posterior: Array  # each row seen, encoded and decoded again: what decoding alone gets wrong


@dataclass(frozen=True)
class Example:
    """One window of one observation: C rows that were looked at, then H that were imagined."""

    observed: Array  # (C + H, ...)
    posterior: Array  # (C + H, ...), decoded from what was seen up to and with the row
    imagined: Array  # (n, H, ...)


@dataclass(frozen=True)
class OpenLoop:
    """Errors by quantity (see UNITS), and examples of the observations among them.

    `windows` (H,): how many episodes had not ended before that step; the others are not counted.
    """

    context: int  # C, rows looked at
    windows: Array
    errors: dict[str, Errors] = field(default_factory=dict)
    examples: dict[str, Example] = field(default_factory=dict)

    @property
    def horizon(self) -> int:
        return len(self.windows)

    def metrics(self) -> dict[str, float]:
        """What a run logs of it: means over the horizon, and over the keys of a kind."""
        kinds = {"vector": "vector_error", "image": "image_error", REWARD: "reward_error"}
        kinds |= {CONTINUE: "continue_accuracy"}
        metrics = {}
        for kind, name in kinds.items():
            found = [e for key, e in self.errors.items() if key.partition("/")[0] == kind]
            for suffix, part in (("", "imagined"), ("_repeated", "repeated")):
                values = np.array([getattr(errors, part) for errors in found])
                if np.isfinite(values).any():
                    metrics[f"open_loop/{name}{suffix}"] = float(np.nanmean(values))
        return metrics

    def save(self, path: Path) -> Path:
        """Write all of it to one `.npz` file."""
        arrays = {"context": np.array(self.context), "windows": self.windows}
        for kind, records in (("errors", self.errors), ("examples", self.examples)):
            for name, record in records.items():
                arrays |= {f"{kind}:{name}:{part}": a for part, a in vars(record).items()}
        with open(path, "wb") as file:  # numpy would append .npz to other names
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return path


def load(path: Path) -> OpenLoop:
    """Read what `save` wrote; the file is data, nothing in it is run.

    Raises:
        ConfigError: if it is not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        errors = {name: Errors(**parts) for name, parts in _grouped(arrays, "errors").items()}
        examples = {name: Example(**parts) for name, parts in _grouped(arrays, "examples").items()}
        found = OpenLoop(int(arrays["context"]), arrays["windows"], errors, examples)
        _check(found)
        return found
    except _UNREADABLE as error:
        raise ConfigError(f"{path}: cannot be read as an open loop ({error})") from error


# What numpy and zipfile raise of a file that is damaged, or something else.
_UNREADABLE = (
    *(OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, RuntimeError),
    *(MemoryError, zipfile.BadZipFile, zlib.error),
)


def _check(found: OpenLoop) -> None:
    """Raises ValueError unless it is numbers, in shapes that fit."""
    steps, context = found.horizon, found.context
    for name, errors in found.errors.items():
        if name.partition("/")[0] not in UNITS:
            raise ValueError(f"{name} is no quantity")
        for part in vars(errors).values():
            _expect(name, part, (steps,))
    _expect("windows", found.windows, (steps,))
    for name, example in found.examples.items():
        shape = example.observed.shape[1:]
        if len(shape) != (3 if name.startswith("image/") else 1) or context < 1:
            raise ValueError(f"{name} has rows of shape {shape} after {context} looks")
        for part in (example.observed, example.posterior):
            _expect(name, part, (context + steps, *shape))
        _expect(name, example.imagined, (len(example.imagined), steps, *shape))


def _expect(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype.kind not in "fiu" or array.size == 0:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, not numbers of {shape}")


def _grouped(arrays: Mapping[str, Array], kind: str) -> dict[str, dict[str, Array]]:
    groups: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        if name.startswith(f"{kind}:"):
            _, quantity, part = name.split(":")
            groups.setdefault(quantity, {})[part] = array
    return groups


def vector_error(predicted: Array, observed: Array, deviation: Array) -> float:
    """Root mean square of the difference, each number in units of its standard deviation.

    Numbers that never vary are left out: there is nothing to foretell, and no unit to tell it in.

    Args:
        predicted: (..., size).
        observed: broadcasts to it.
        deviation: (size,), >= 0.

    Returns:
        The error; NaN if nothing is left.
    """
    varies = deviation > 0
    wrong = ((predicted - observed) / np.where(varies, deviation, 1.0))[..., varies]
    return float(np.sqrt(_mean(np.square(wrong))))


def image_error(predicted: Array, observed: Array) -> float:
    """Mean squared difference of pixels in [0, 1], of any shapes that broadcast."""
    return _mean(np.square(predicted - observed))


def reward_error(predicted: Array, received: Array) -> float:
    """Mean absolute difference."""
    return _mean(np.abs(predicted - received))


def continue_accuracy(probability: Array, terminated: Array) -> float:
    """Share of rows where P(not terminated) lies on the right side of one half."""
    return _mean((probability > 0.5) != terminated)


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else float("nan")
