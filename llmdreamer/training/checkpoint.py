"""Checkpoints on disk: written whole or not at all, named by their hash, the newest good one found."""

from __future__ import annotations

import hashlib
import io
import logging
import os
import re
from pathlib import Path
from typing import Any

import torch

from llmdreamer.errors import ConfigError

log = logging.getLogger(__name__)
_NAME = re.compile(r"step-(\d{12})-([0-9a-f]{16})\.pt")


class Checkpoints:
    """The `keep` newest checkpoints of a run, `step-STEP-HASH.pt` in `folder`.

    The hash in the name is of the file's bytes, so a truncated or altered file is noticed before it is
    read. Only tensors and plain types are written, and read (`weights_only=True`): a checkpoint
    from a stranger cannot run code.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        folder.mkdir(parents=True, exist_ok=True)
        for debris in folder.glob("*.tmp"):
            debris.unlink()

    def save(self, state: dict[str, Any], policy_step: int) -> Path | None:
        """Write a checkpoint and drop the oldest beyond `keep`; None, with a line, if it cannot be."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        path = self.folder / f"step-{policy_step:012d}-{_hash(content)}.pt"
        draft = path.with_suffix(".tmp")
        try:
            with open(draft, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
            _fsync_folder(self.folder)
        except OSError as error:
            draft.unlink(missing_ok=True)
            log.warning("no checkpoint at policy step %d: %s", policy_step, error)
            return None
        for old in self._paths()[self.keep :]:
            old.unlink()
        return path

    def newest(self, device: torch.device) -> dict[str, Any]:
        """The newest checkpoint whose bytes are what they were.

        Raises:
            ConfigError: if there is none.
        """
        for path in self._paths():
            content = path.read_bytes()
            if _hash(content) == path.stem.rsplit("-", 1)[1]:
                state: dict[str, Any] = torch.load(
                    io.BytesIO(content), map_location=device, weights_only=True
                )
                return state
            log.warning("%s is damaged: trying the one before it", path)
        raise ConfigError(f"missing checkpoint: {self.folder} holds no undamaged one")

    def _paths(self) -> list[Path]:
        """Newest first. Two of one step, which only a resumed run can leave, are the same run's."""
        paths = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(paths, key=lambda path: (path.name[:17], path.stat().st_mtime), reverse=True)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _fsync_folder(folder: Path) -> None:
    # The rename itself is only on the disk once the folder is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
