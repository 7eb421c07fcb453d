"""Gymnasium's spaces as plain data, so that a policy can be told of them without its environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmdreamer.envs.actions import name_of
from llmdreamer.utils.errors import ConfigError


def space_to_plain(space: spaces.Space[Any]) -> dict[str, Any]:
    """A space of a kind that we read or act in, as what JSON can hold.

    Raises:
        ConfigError: if it is of another kind.
    """
    if isinstance(space, spaces.Dict):
        return {"dict": {key: space_to_plain(part) for key, part in space.spaces.items()}}
    if isinstance(space, spaces.Discrete):
        return {"discrete": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"multi_discrete": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.Box):
        bounds = {"low": _short(space.low), "high": _short(space.high)}
        return {"box": list(space.shape), "dtype": str(space.dtype), **bounds}
    # MiniGrid's missions are texts, too, by a space of their own.
    if isinstance(space, spaces.Text) or (space.dtype is not None and space.dtype.kind == "U"):
        return {"text": int(getattr(space, "max_length", 4096))}
    raise ConfigError(f"the space {name_of(space)} cannot be kept as data")


def space_from_plain(plain: dict[str, Any]) -> spaces.Space[Any]:
    """The inverse of `space_to_plain`."""
    if "dict" in plain:
        return spaces.Dict({key: space_from_plain(part) for key, part in plain["dict"].items()})
    if "discrete" in plain:
        return spaces.Discrete(plain["discrete"], start=plain["start"])
    if "multi_discrete" in plain:
        return spaces.MultiDiscrete(plain["multi_discrete"], start=plain["start"])
    if "text" in plain:
        return spaces.Text(plain["text"])
    shape, dtype = tuple(plain["box"]), np.dtype(plain["dtype"])
    low, high = (np.broadcast_to(np.array(plain[end], dtype), shape) for end in ("low", "high"))
    return spaces.Box(low.copy(), high.copy(), shape, dtype.type)


def _short(bound: NDArray[Any]) -> Any:
    """One number where all are the same: a picture has a bound for every pixel."""
    same = bool(bound.size) and bool((bound == bound.flat[0]).all())
    return bound.flat[0].item() if same else bound.tolist()
