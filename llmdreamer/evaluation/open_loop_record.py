"""Results of open-loop evaluation: errors and examples as plain arrays in one file."""

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
"""The file's name in the run's folder and among its artifacts."""

REWARD, CONTINUE = "reward", "continue"
UNITS = {
    "vector": "RMSE (sd of the observation)",
    "image": "mean squared error of pixels in [0, 1]",
    REWARD: "mean absolute error (reward)",
    CONTINUE: "accuracy (share right)",
}
"""Units by the first part of a quantity's name: `vector/KEY`, `image/KEY`, `reward`, `continue`."""


@dataclass(frozen=True)
class Errors:
    """Errors of one quantity, 1..H steps after the last observation. Each (H,); NaN without data."""

    imagined: Array  # averaged over single trajectories, not of their mean
    repeated: Array  # baseline: the last observation repeated, and the episode goes on
    posterior: Array  # each step encoded and decoded: the error of decoding alone


@dataclass(frozen=True)
class Example:
    """One window of one observation: C observed steps, then H imagined ones."""

    observed: Array  # (C + H, ...)
    posterior: Array  # (C + H, ...), decoded from the posterior of each step
    imagined: Array  # (n, H, ...)


@dataclass(frozen=True)
class OpenLoop:
    """Errors by quantity (see UNITS), and examples of observations.

    `windows` (H,): the number of windows whose episode had not ended before that step; others are left out.
    """

    context: int  # C, observed steps
    windows: Array
    errors: dict[str, Errors] = field(default_factory=dict)
    examples: dict[str, Example] = field(default_factory=dict)

    @property
    def horizon(self) -> int:
        return len(self.windows)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a run: means over the horizon, and over the keys of a kind."""
        kinds = {"vector": "vector_error", "image": "image_error", REWARD: "reward_error"}
        kinds |= {CONTINUE: "continue_accuracy"}
        metrics = {}
        for kind, name in kinds.items():
            matching = [e for key, e in self.errors.items() if key.partition("/")[0] == kind]
            for suffix, field_name in (("", "imagined"), ("_repeated", "repeated")):
                values = np.array([getattr(errors, field_name) for errors in matching])
                if np.isfinite(values).any():
                    metrics[f"open_loop/{name}{suffix}"] = float(np.nanmean(values))
        return metrics

    def save(self, path: Path) -> Path:
        """Write everything to one `.npz` file."""
        arrays = {"context": np.array(self.context), "windows": self.windows}
        for kind, records in (("errors", self.errors), ("examples", self.examples)):
            for name, record in records.items():
                arrays |= {f"{kind}:{name}:{attr}": a for attr, a in vars(record).items()}
        with open(path, "wb") as file:  # numpy would append .npz to other names
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        return path


def load(path: Path) -> OpenLoop:
    """Read a file that `save` wrote. Nothing in it is executed.

    Raises:
        ConfigError: if it is another or a damaged file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        errors = {name: Errors(**group) for name, group in _grouped(arrays, "errors").items()}
        examples = {name: Example(**group) for name, group in _grouped(arrays, "examples").items()}
        result = OpenLoop(int(arrays["context"]), arrays["windows"], errors, examples)
        _check(result)
        return result
    except _UNREADABLE as error:
        raise ConfigError(f"{path}: not a file of open-loop results ({error})") from error


# Errors of numpy and zipfile on damaged or other files.
_UNREADABLE = (
    *(OSError, EOFError, KeyError, TypeError, ValueError, AttributeError, RuntimeError),
    *(MemoryError, zipfile.BadZipFile, zlib.error),
)


def _check(result: OpenLoop) -> None:
    """Raise ValueError unless all arrays are numeric and their shapes agree."""
    steps, context = result.horizon, result.context
    for name, errors in result.errors.items():
        if name.partition("/")[0] not in UNITS:
            raise ValueError(f"{name} is not a known quantity")
        for curve in vars(errors).values():
            _expect(name, curve, (steps,))
    _expect("windows", result.windows, (steps,))
    for name, example in result.examples.items():
        shape = example.observed.shape[1:]
        if len(shape) != (3 if name.startswith("image/") else 1) or context < 1:
            raise ValueError(f"{name} has steps of shape {shape} after {context} observed ones")
        for array in (example.observed, example.posterior):
            _expect(name, array, (context + steps, *shape))
        _expect(name, example.imagined, (len(example.imagined), steps, *shape))


def _expect(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape or array.dtype.kind not in "fiu" or array.size == 0:
        raise ValueError(f"{name} is {array.dtype} of shape {array.shape}, not numbers of {shape}")


def _grouped(arrays: Mapping[str, Array], kind: str) -> dict[str, dict[str, Array]]:
    groups: dict[str, dict[str, Array]] = {}
    for name, array in arrays.items():
        if name.startswith(f"{kind}:"):
            _, quantity, attr = name.split(":")
            groups.setdefault(quantity, {})[attr] = array
    return groups


def vector_error(predicted: Array, observed: Array, deviation: Array) -> float:
    """Root mean square of the difference, each component in units of its standard deviation.

    Components that never vary are left out, because they have no unit.

    Args:
        predicted: (..., size).
        observed: broadcasts to it.
        deviation: (size,), >= 0.

    Returns:
        The error; NaN if no component varies.
    """
    varies = deviation > 0
    scaled = ((predicted - observed) / np.where(varies, deviation, 1.0))[..., varies]
    return float(np.sqrt(_mean(np.square(scaled))))


def image_error(predicted: Array, observed: Array) -> float:
    """Mean squared difference of pixels in [0, 1], of any shapes that broadcast."""
    return _mean(np.square(predicted - observed))


def reward_error(predicted: Array, received: Array) -> float:
    """Mean absolute difference."""
    return _mean(np.abs(predicted - received))


def continue_accuracy(probability: Array, terminated: Array) -> float:
    """Return the share of steps where P(not terminated) is on the correct side of one half."""
    return _mean((probability > 0.5) != terminated)


def _mean(values: Array) -> float:
    return float(values.mean()) if values.size else float("nan")
