"""Convert Gymnasium spaces to JSON data and back, so that a policy can be loaded without its environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmdreamer.envs.actions import describe_space
from llmdreamer.utils.errors import ConfigError


def space_to_plain(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a supported observation or action space as JSON data.

    Raises:
        ConfigError: if the space, or a key of a Dict, is not supported.
    """
    if isinstance(space, spaces.Dict):
        inner = {key: space_to_plain(value) for key, value in space.spaces.items()}
        if all(isinstance(key, str) for key in inner):
            return {"dict": inner}
        return {"items": [[_key_to_plain(key), value] for key, value in inner.items()]}
    if isinstance(space, spaces.Tuple):
        return {"tuple": [space_to_plain(inner) for inner in space.spaces]}
    if isinstance(space, spaces.MultiBinary):
        return {"multi_binary": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Discrete):
        return {"discrete": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"multi_discrete": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.Box):
        bounds = {"low": _compress_bound(space.low), "high": _compress_bound(space.high)}
        return {"box": list(space.shape), "dtype": str(space.dtype), **bounds}
    # MiniGrid's missions are texts too, but have a space class of their own.
    if isinstance(space, spaces.Text) or (space.dtype is not None and space.dtype.kind == "U"):
        return {"text": int(getattr(space, "max_length", 4096))}
    raise ConfigError(f"the space {describe_space(space)} cannot be saved with a policy")


def space_from_plain(plain: dict[str, Any]) -> spaces.Space[Any]:
    """Return the space that `space_to_plain` saved."""
    if "dict" in plain:
        return spaces.Dict({key: space_from_plain(inner) for key, inner in plain["dict"].items()})
    if "items" in plain:
        return spaces.Dict(
            {_key_from_plain(key): space_from_plain(inner) for key, inner in plain["items"]}
        )
    if "tuple" in plain:
        return spaces.Tuple([space_from_plain(inner) for inner in plain["tuple"]])
    if "multi_binary" in plain:
        return spaces.MultiBinary(plain["multi_binary"])
    if "discrete" in plain:
        return spaces.Discrete(plain["discrete"], start=plain["start"])
    if "multi_discrete" in plain:
        return spaces.MultiDiscrete(plain["multi_discrete"], start=plain["start"])
    if "text" in plain:
        return spaces.Text(plain["text"])
    shape, dtype = tuple(plain["box"]), np.dtype(plain["dtype"])
    low, high = (np.broadcast_to(np.array(plain[end], dtype), shape) for end in ("low", "high"))
    return spaces.Box(low.copy(), high.copy(), shape, dtype.type)


def _key_to_plain(key: Any) -> Any:
    """Return a key of a Dict space as JSON data: JSON's own keys are texts, and a tuple is a list."""
    if isinstance(key, tuple):
        return [_key_to_plain(part) for part in key]
    if isinstance(key, np.generic):
        return key.item()
    if key is None or isinstance(key, str | int | float):
        return key
    raise ConfigError(
        f"the key {key!r} of a Dict space cannot be saved with a policy: use texts, numbers or tuples"
    )


def _key_from_plain(key: Any) -> Any:
    return tuple(_key_from_plain(part) for part in key) if isinstance(key, list) else key


def _compress_bound(bound: NDArray[Any]) -> Any:
    """Return one number if all are equal: an image has one bound for each pixel."""
    same = bool(bound.size) and bool((bound == bound.flat[0]).all())
    return bound.flat[0].item() if same else bound.tolist()
