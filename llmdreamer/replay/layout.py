"""What a replay folder looks like: the record of a row, the file that tells it, the room it needs."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llmdreamer.types import EnvSpec
from llmdreamer.utils.errors import ConfigError

META = "meta.json"
FORMAT = 1
LARGEST_SEGMENT_ROWS = 65_536
LARGEST_SEGMENT_BYTES = 64 * 2**20

log = logging.getLogger(__name__)


def observation_field(key: str) -> str:
    """Return the name of an observation's field in a row."""
    return f"observations/{key}"


def row_dtype(spec: EnvSpec) -> np.dtype[Any]:
    """Return the packed record of one row: images and texts are bytes, vectors float32."""
    observations = [
        (observation_field(key), np.float32 if spec.kind(key) == "vector" else np.uint8, shape)
        for key, shape in spec.observations.items()
    ]
    flags = [(name, np.bool_) for name in ("is_first", "terminated", "truncated")]
    action = ("action", np.float32, (spec.action_size,))
    return np.dtype([*observations, action, ("reward", np.float32), *flags])


def segment_rows(row: np.dtype[Any], stream_capacity: int) -> int:
    """Return the rows of one file: few enough that dropping the oldest file costs little."""
    by_size = LARGEST_SEGMENT_BYTES // row.itemsize
    return max(1, min(LARGEST_SEGMENT_ROWS, by_size, stream_capacity // 8))


def claim_folder(folder: Path, spec: EnvSpec, num_envs: int, row: np.dtype[Any]) -> None:
    """Make the folder, or check that one already there holds rows of this layout.

    Raises:
        ConfigError: if it holds others, told with both values, or is no replay folder.
    """
    described: dict[str, Any] = {"format": FORMAT, "num_envs": num_envs} | asdict(spec)
    assert row.fields is not None
    described["row"] = [(name, *_field(row[name])) for name in row.fields]
    wanted = json.loads(json.dumps(described))  # lists for tuples, as it is read back
    path = folder / META
    if not path.exists():
        if folder.exists() and any(entry.suffix != ".tmp" for entry in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and not a replay folder; name another")
        folder.mkdir(parents=True, exist_ok=True)
        return _write_json(path, wanted)
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read ({error}); name another folder") from error
    for key, value in wanted.items():
        if found.get(key) != value:
            raise ConfigError(
                f"replay in {folder} has {key}={found.get(key)}, this run {key}={value}; "
                "use another run folder or the old settings"
            )


def check_room(folder: Path, needed: int, least: int) -> None:
    """Compare the free disk with the bytes of a full replay.

    Args:
        folder: what is in it already counts as free.
        needed: bytes at full capacity; less free than that is a warning.
        least: bytes without which starting makes no sense.

    Raises:
        ConfigError: if `least`, or one per cent of `needed`, does not fit.
    """
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free + held
    least = min(needed, max(least, needed // 100))
    told = f"replay.capacity needs {_size(needed)} in {folder}, {_size(free)} are free"
    if free < least:
        raise ConfigError(f"{told}; lower replay.capacity or name another output_root")
    if free < needed:
        log.warning("%s: the disk will be full before the replay is", told)


def _field(dtype: np.dtype[Any]) -> tuple[str, list[int]]:
    return dtype.base.str, list(dtype.shape)


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"


def _write_json(path: Path, value: Any) -> None:
    part = path.with_suffix(".tmp")
    with part.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
