"""Layout of a replay folder: the record of a time step, the file that describes it, the disk space."""

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

META_FILE = "meta.json"
FORMAT_VERSION = 1
MAX_SEGMENT_STEPS = 65_536
MAX_SEGMENT_BYTES = 64 * 2**20

log = logging.getLogger(__name__)


def observation_field(key: str) -> str:
    """Return the name of an observation's field in a stored step."""
    return f"observations/{key}"


def step_dtype(spec: EnvSpec) -> np.dtype[Any]:
    """Return the packed record of one time step: images and texts are bytes, vectors float32."""
    observations = [
        (observation_field(key), np.float32 if spec.kind(key) == "vector" else np.uint8, shape)
        for key, shape in spec.observations.items()
    ]
    flags = [(name, np.bool_) for name in ("is_first", "terminated", "truncated")]
    action = ("action", np.float32, (spec.action_size,))
    return np.dtype([*observations, action, ("reward", np.float32), *flags])


def segment_steps(dtype: np.dtype[Any], stream_capacity: int) -> int:
    """Return the steps of one file: few enough that dropping the oldest file loses little."""
    by_size = MAX_SEGMENT_BYTES // dtype.itemsize
    return max(1, min(MAX_SEGMENT_STEPS, by_size, stream_capacity // 8))


def claim_folder(folder: Path, spec: EnvSpec, num_envs: int, dtype: np.dtype[Any]) -> None:
    """Create the folder, or check that an existing one has this layout.

    Raises:
        ConfigError: if its layout differs (the message names both values), or it is no replay folder.
    """
    described: dict[str, Any] = {"format": FORMAT_VERSION, "num_envs": num_envs} | asdict(spec)
    assert dtype.fields is not None
    described["step"] = [(name, *_field(dtype[name])) for name in dtype.fields]
    wanted = json.loads(json.dumps(described))  # JSON turns tuples into lists
    path = folder / META_FILE
    if not path.exists():
        if folder.exists() and any(entry.suffix != ".tmp" for entry in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty and not a replay folder; name another")
        folder.mkdir(parents=True, exist_ok=True)
        return _write_json(path, wanted)
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read ({error}); name another folder") from error
    for key, value in wanted.items():
        if stored.get(key) != value:
            raise ConfigError(
                f"replay in {folder} has {key}={stored.get(key)}, this run {key}={value}; "
                "use another run folder, or the old settings"
            )


def check_room(folder: Path, needed: int, least: int) -> None:
    """Compare the free disk space with the size of a full replay.

    Args:
        folder: the replay folder; its present contents count as free.
        needed: bytes at full capacity; with less free space a warning is logged.
        least: bytes below which the run is refused.

    Raises:
        ConfigError: if `least` bytes, or one percent of `needed`, are not free.
    """
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = shutil.disk_usage(folder).free + held
    least = min(needed, max(least, needed // 100))
    message = f"replay.capacity needs {_size(needed)} in {folder}, {_size(free)} are free"
    if free < least:
        raise ConfigError(f"{message}; lower replay.capacity or name another output_root")
    if free < needed:
        log.warning("%s: the disk will be full before the replay is", message)


def _field(dtype: np.dtype[Any]) -> tuple[str, list[int]]:
    return dtype.base.str, list(dtype.shape)


def _size(count: int) -> str:
    return f"{count / 2**30:.3g} GiB"


def _write_json(path: Path, value: Any) -> None:
    draft = path.with_suffix(".tmp")
    with draft.open("w") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
