"""Values of Python and numpy as numbers, strings, lists and dicts, and back: exact, and without pickle."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np


def to_plain(value: Any) -> Any:
    """Return numbers, strings, lists and dicts from which `from_plain` makes the same value.

    Types are kept exactly: the power of a numpy scalar differs from a Python float's in the last
    bit.

    Raises:
        TypeError: if the value is none of None, number, string, bytes, numpy array or scalar, or a
            tuple, list or dict of these.
    """
    if isinstance(value, np.ndarray) and value.dtype != np.dtype(object):
        data = base64.b64encode(value.tobytes()).decode()
        dtype, shape = value.dtype.str, list(value.shape)
        return {"kind": "array", "dtype": dtype, "shape": shape, "data": data}
    if isinstance(value, np.generic):  # before float: np.float64 is one
        return {"kind": "scalar", "dtype": value.dtype.str, "data": value.item()}
    if type(value) is bytes:
        return {"kind": "bytes", "data": base64.b64encode(value).decode()}
    if type(value) in (tuple, list):
        return {"kind": type(value).__name__, "data": [to_plain(item) for item in value]}
    if type(value) is dict:
        pairs = [[to_plain(key), to_plain(item)] for key, item in value.items()]
        return {"kind": "dict", "data": pairs}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(f"no plain form of {type(value).__name__}")


def from_plain(value: Any) -> Any:
    """Undo `to_plain`."""
    if not isinstance(value, dict):
        return value
    kind, data = value["kind"], value["data"]
    if kind in ("tuple", "list"):
        items = [from_plain(item) for item in data]
        return tuple(items) if kind == "tuple" else items
    if kind == "dict":
        return {from_plain(key): from_plain(item) for key, item in data}
    if kind == "scalar":
        return np.dtype(value["dtype"]).type(data)
    if kind == "bytes":
        return base64.b64decode(data)
    if isinstance(data, str):
        flat = np.frombuffer(base64.b64decode(data), value["dtype"])
        return flat.reshape(value["shape"]).copy()
    return np.array(data, dtype=value["dtype"]).reshape(value["shape"])  # as it was written once


class Packer:
    """Objects that point to one another, as plain values: what is one object twice stays one.

    Args:
        classes: those whose objects may be packed, by name; an object is all that its `__dict__` holds.
        root: one object that is not packed, only pointed to.
    """

    def __init__(self, classes: Mapping[str, type], root: object) -> None:
        self._names = {made: name for name, made in classes.items()}
        self._root = root
        self._numbers: dict[int, int] = {}
        self._alive: list[object] = []  # an id is an object's own only as long as it lives

    def pack(self, value: Any) -> Any:
        """Raises TypeError at an object of no such class."""
        if value is self._root:
            return {"kind": "root"}
        kind = type(value)
        if kind not in (list, dict, set) and kind not in self._names:
            if kind is tuple:
                return {"kind": "tuple", "data": [self.pack(item) for item in value]}
            return to_plain(value)
        if id(value) in self._numbers:
            return {"kind": "again", "number": self._numbers[id(value)]}
        number = self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
        if kind in self._names:
            data = [[name, self.pack(part)] for name, part in vars(value).items()]
            return {"kind": "object", "class": self._names[kind], "number": number, "data": data}
        if kind is dict:
            pairs = [[self.pack(key), self.pack(item)] for key, item in value.items()]
            return {"kind": "pairs", "number": number, "data": pairs}
        items = [self.pack(item) for item in value]
        return {"kind": f"packed {kind.__name__}", "number": number, "data": items}


class Unpacker:
    """Undoes a `Packer`. Nothing of the objects' own code runs: not even `__init__`."""

    def __init__(self, classes: Mapping[str, type], root: object) -> None:
        self._classes = classes
        self._root = root
        self._made: dict[int, Any] = {}

    def unpack(self, value: Any) -> Any:
        """Raises KeyError at an object of no such class."""
        kind = value["kind"] if isinstance(value, dict) else None
        if kind == "root":
            return self._root
        if kind == "again":
            return self._made[value["number"]]
        if kind == "tuple":
            return tuple(self.unpack(item) for item in value["data"])
        if kind == "object":
            made: object = object.__new__(self._classes[value["class"]])
            self._made[value["number"]] = made
            for name, part in value["data"]:
                vars(made)[name] = self.unpack(part)
            return made
        if kind == "pairs":
            pairs = self._made[value["number"]] = {}
            for key, item in value["data"]:
                pairs[self.unpack(key)] = self.unpack(item)
            return pairs
        if kind == "packed list":
            items = self._made[value["number"]] = []
            items += [self.unpack(item) for item in value["data"]]
            return items
        if kind == "packed set":
            found = self._made[value["number"]] = set()
            found |= {self.unpack(item) for item in value["data"]}
            return found
        return from_plain(value)
