"""Convert Python and numpy values to numbers, strings, lists and dicts, and back: exact, without pickle."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np


def to_plain(value: Any) -> Any:
    """Return numbers, strings, lists and dicts from which `from_plain` restores the value.

    Types are kept exactly: powers of a numpy scalar and of a Python float differ in the last bit.

    Raises:
        TypeError: if the value is not None, a number, string, bytes, numpy array or scalar, or a
            tuple, list or dict of these.
    """
    if isinstance(value, np.ndarray) and value.dtype != np.dtype(object):
        data = base64.b64encode(value.tobytes()).decode()
        dtype, shape = value.dtype.str, list(value.shape)
        return {"kind": "array", "dtype": dtype, "shape": shape, "data": data}
    if isinstance(value, np.generic):  # tested before float: np.float64 is a subclass
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
    raise TypeError(f"cannot convert a {type(value).__name__} to plain data")


def from_plain(value: Any) -> Any:
    """Return the value that `to_plain` converted."""
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
    flat = np.frombuffer(base64.b64decode(data), value["dtype"])
    return flat.reshape(value["shape"]).copy()


class Packer:
    """Convert objects that refer to one another to plain data. Shared references stay shared.

    Args:
        classes: classes whose objects may be packed, by name; an object is packed as its `__dict__`.
        root: an object that is not packed; references to it are kept.
    """

    def __init__(self, classes: Mapping[str, type], root: object) -> None:
        self._names = {cls: name for name, cls in classes.items()}
        self._root = root
        self._numbers: dict[int, int] = {}
        self._packed: list[
            object
        ] = []  # keeps objects alive: Python reuses the id of a freed object

    def pack(self, value: Any) -> Any:
        """Return a value as plain data. Raises TypeError at an object of an unlisted class."""
        if value is self._root:
            return {"kind": "root"}
        kind = type(value)
        if kind not in (list, dict, set) and kind not in self._names:
            if kind is tuple:
                return {"kind": "tuple", "data": [self.pack(item) for item in value]}
            return to_plain(value)
        if id(value) in self._numbers:
            return {"kind": "reference", "number": self._numbers[id(value)]}
        number = self._numbers[id(value)] = len(self._numbers)
        self._packed.append(value)
        if kind in self._names:
            data = [[name, self.pack(item)] for name, item in vars(value).items()]
            return {"kind": "object", "class": self._names[kind], "number": number, "data": data}
        if kind is dict:
            pairs = [[self.pack(key), self.pack(item)] for key, item in value.items()]
            return {"kind": "pairs", "number": number, "data": pairs}
        items = [self.pack(item) for item in value]
        return {"kind": f"packed {kind.__name__}", "number": number, "data": items}


class Unpacker:
    """Restore what a `Packer` packed. No code of the objects' classes runs, not even `__init__`."""

    def __init__(self, classes: Mapping[str, type], root: object) -> None:
        self._classes = classes
        self._root = root
        self._objects: dict[int, Any] = {}

    def unpack(self, value: Any) -> Any:
        """Return the value that was packed. Raises KeyError at an object of an unlisted class."""
        kind = value["kind"] if isinstance(value, dict) else None
        if kind == "root":
            return self._root
        if kind == "reference":
            return self._objects[value["number"]]
        if kind == "tuple":
            return tuple(self.unpack(item) for item in value["data"])
        if kind == "object":
            instance: object = object.__new__(self._classes[value["class"]])
            self._objects[value["number"]] = instance
            for name, item in value["data"]:
                vars(instance)[name] = self.unpack(item)
            return instance
        if kind == "pairs":
            pairs = self._objects[value["number"]] = {}
            for key, item in value["data"]:
                pairs[self.unpack(key)] = self.unpack(item)
            return pairs
        if kind == "packed list":
            items = self._objects[value["number"]] = []
            items += [self.unpack(item) for item in value["data"]]
            return items
        if kind == "packed set":
            members = self._objects[value["number"]] = set()
            members |= {self.unpack(item) for item in value["data"]}
            return members
        return from_plain(value)
