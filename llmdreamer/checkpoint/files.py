"""Checkpoints on disk: written whole or not at all, named by their hash, the newest good one found."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import torch

from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import fsync

log = logging.getLogger(__name__)
HASH_DIGITS = 16
_NAME = re.compile(r"step-(\d{12})-([0-9a-f]{16})\.pt")


class Checkpoints:
    """The `keep` newest checkpoints of a run, `step-STEP-HASH.pt` in `folder`.

    The hash in the name is of the file's bytes, so a truncated or altered file is noticed before it is
    read. Only tensors and plain types are written, and read (`weights_only=True`): a checkpoint
    from a stranger cannot run code.

    Who holds the run's folder writes here, after `clear_drafts`; anybody may look for the `newest`.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def clear_drafts(self) -> None:
        """Remove what a killed life of the run was writing."""
        for draft in self.folder.glob("*.tmp"):
            _remove(draft)

    def save(
        self, state: dict[str, Any], policy_step: int, before: Callable[[], None] | None = None
    ) -> Path | None:
        """Write a checkpoint and drop the oldest beyond `keep`; None, with a line, if it cannot be.

        Args:
            before: brings what the state counts on to the disk; its OSError is the checkpoint's.
        """
        draft = self.folder / f"step-{policy_step:012d}.tmp"
        hashing = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if before is not None:
                before()
            with open(draft, "wb") as file:
                hashing = _Hashing(file)
                torch.save(state, cast(IO[bytes], hashing))
                file.flush()
                os.fsync(file.fileno())
            path = draft.with_name(f"{draft.stem}-{hashing.name}.pt")
            draft.rename(path)
            fsync(self.folder)  # the rename itself is only on the disk once the folder is
        except (OSError, RuntimeError) as error:
            _remove(draft)
            # Of a write that failed, torch says only that the file is shorter than it thought.
            cause = error if hashing is None or hashing.error is None else hashing.error
            log.warning("no checkpoint at policy step %d: %s", policy_step, cause)
            return None
        # Those of later steps are of a life that this one does not go on from: damaged, or better left.
        known = self._paths()
        lived = [one for one in known if _step(one) <= policy_step]
        for old in set(known) - set(lived[: self.keep]):
            _remove(old)
        return path

    def newest(self, device: torch.device) -> dict[str, Any]:
        """The newest checkpoint whose bytes are what they were, and can be read.

        Raises:
            ConfigError: if there is none, or it holds more than tensors and plain types.
        """
        damaged: list[str] = []
        for path in self._paths():
            if _digest(path) == path.stem.rsplit("-", 1)[1]:
                if damaged:
                    log.warning("damaged: %s; going on from %s", ", ".join(damaged), path)
                return _load(path, device)
            damaged.append(str(path))
        raise ConfigError(f"missing checkpoint: {self.folder} holds no undamaged one")

    @property
    def newest_path(self) -> Path | None:
        """The newest checkpoint's file, good or not; None if there is none."""
        return next(iter(self._paths()), None)

    def told(self, policy_step: int, action_repeat: int) -> str:
        """For the end of a run at `policy_step`: where the checkpoints lie, and if its last is missing."""
        newest = self.newest_path
        if newest is None:
            return "none: it could not be written"
        if (step := _step(newest)) < policy_step:
            return (
                f"{self.folder} (of env step {step * action_repeat}: the last could not be written)"
            )
        return str(self.folder)

    def _paths(self) -> list[Path]:
        """Newest first. Two of one step, which only a resumed run can leave, are the same run's."""
        found = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            # Left out: a folder, a link to nothing, and one that its run has removed just now.
            with suppress(OSError):
                if _NAME.fullmatch(path.name) and path.is_file():
                    found.append((_step(path), path.stat().st_mtime, path))
        return [path for *_, path in sorted(found, reverse=True)]


def _step(path: Path) -> int:
    return int(path.name[5:17])


def _remove(path: Path) -> None:
    """What cannot be removed costs room on the disk, and a line, but not the run."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot be removed: %s", error)


def _digest(path: Path) -> str | None:
    """The hash of a checkpoint's bytes; None if they cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]
    except OSError:
        return None


def _load(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # Its bytes are as they were written, so it was not a Checkpoints that wrote them.
        raise ConfigError(
            f"{path} is no checkpoint of a run: it holds more than tensors and plain values, and"
            " was not loaded"
        ) from error
    if not isinstance(state, dict):
        raise ConfigError(f"{path} is no checkpoint of a run: it holds a {type(state).__name__}")
    return state


class _Hashing:
    """A file that hashes what is written to it, so that gigabytes need not be held or read again."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._hash = hashlib.sha256()
        self.error: OSError | None = None

    @property
    def name(self) -> str:
        return self._hash.hexdigest()[:HASH_DIGITS]

    def write(self, content: bytes) -> int:
        self._hash.update(content)
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
