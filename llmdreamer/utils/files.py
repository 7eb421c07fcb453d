"""Crash-safe files: atomic replacement and fsync; and paths as a user types them."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

from llmdreamer.utils.errors import ConfigError


def expand_user(path: str | Path) -> Path:
    """Return a path with `~` and `~user` replaced by that user's home.

    Raises:
        ConfigError: if this machine has no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = Path(path).parts[0]
        raise ConfigError(f"{path}: this machine has no home folder for {user}") from error


def write_atomically(path: Path, text: str) -> None:
    """Replace the text of a file atomically: a reader sees the old text or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A process id would not be unique: containers that share a folder often all have process 1.
    draft = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(draft, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError:
        draft.unlink(missing_ok=True)  # a full disk would collect one draft per attempt
        raise


def fsync(path: Path) -> None:
    """Sync the bytes of a file, or the names in a folder, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
