"""Checkpoint files: written atomically, named by their hash; the newest undamaged one is loaded."""

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
_NAME = re.compile(rf"step-(\d{{12}})-([0-9a-f]{{{HASH_DIGITS}}})\.pt")


class Checkpoints:
    """The `keep` newest checkpoints of a run, `step-STEP-HASH.pt` in `folder`.

    The hash in the name covers the bytes of the file, so a truncated or altered file is detected before it is
    loaded. Files hold only tensors and plain types (`weights_only=True`), so a checkpoint from a stranger
    cannot run code.

    Only the process that holds the run's folder writes here, after `clear_drafts`. Any process may read.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def clear_drafts(self) -> None:
        """Remove partial files of a killed process."""
        for draft in self.folder.glob("*.tmp"):
            _remove(draft)

    def save(
        self, state: dict[str, Any], policy_step: int, before: Callable[[], None] | None = None
    ) -> Path | None:
        """Write a checkpoint and delete the oldest beyond `keep`.

        Args:
            before: syncs the files that the state refers to; its OSError counts as a failed write.

        Returns:
            The path, or None after a failed write, which is logged.
        """
        draft = self.folder / f"step-{policy_step:012d}.tmp"
        hashing = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if before is not None:
                before()
            with open(draft, "wb") as file:
                hashing = _HashingFile(file)
                torch.save(state, cast(IO[bytes], hashing))
                file.flush()
                os.fsync(file.fileno())
            path = draft.with_name(f"{draft.stem}-{hashing.name}.pt")
            draft.rename(path)
            fsync(self.folder)  # makes the rename durable
        except (OSError, RuntimeError) as error:
            _remove(draft)
            # After a failed write torch reports only an unexpected file size.
            cause = error if hashing is None or hashing.error is None else hashing.error
            log.warning("no checkpoint at policy step %d: %s", policy_step, cause)
            return None
        # Checkpoints of later steps belong to a discarded attempt; they are deleted too.
        paths = self._paths()
        current = [other for other in paths if _step(other) <= policy_step]
        for old in set(paths) - set(current[: self.keep]):
            _remove(old)
        return path

    def newest(self, device: torch.device) -> dict[str, Any]:
        """Load the newest undamaged checkpoint.

        Raises:
            ConfigError: if there is none, it holds more than tensors and plain types, or it is not a
                dict.
        """
        damaged: list[str] = []
        for path in self._paths():
            if _digest(path) == path.stem.rsplit("-", 1)[1]:
                if damaged:
                    log.warning("damaged checkpoint: %s; loading %s", ", ".join(damaged), path)
                return _load(path, device)
            damaged.append(str(path))
        raise ConfigError(f"missing checkpoint: {self.folder} holds no undamaged one")

    @property
    def newest_path(self) -> Path | None:
        """The file of the newest checkpoint, damaged or not; None if there is none."""
        return next(iter(self._paths()), None)

    @property
    def newest_step(self) -> int:
        """The policy step of the newest checkpoint; -1 if there is none."""
        newest = self.newest_path
        return -1 if newest is None else _step(newest)

    def describe(self, policy_step: int, action_repeat: int) -> str:
        """Return the folder, for the summary of a run that ended at `policy_step`.

        The text says so if the last checkpoint is missing.
        """
        newest = self.newest_path
        if newest is None:
            return "none: it could not be written"
        if (step := _step(newest)) < policy_step:
            return (
                f"{self.folder} (of env step {step * action_repeat}: the last could not be written)"
            )
        return str(self.folder)

    def _paths(self) -> list[Path]:
        """Return the files, newest first. A resumed run may leave two of the same step."""
        entries = []
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            # Skips folders, broken links, and files that the run removes meanwhile.
            with suppress(OSError):
                if _NAME.fullmatch(path.name) and path.is_file():
                    entries.append((_step(path), path.stat().st_mtime, path))
        return [path for *_, path in sorted(entries, reverse=True)]


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def _remove(path: Path) -> None:
    """Delete a file; a failure is logged and does not end the run."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("cannot delete a checkpoint: %s", error)


def _digest(path: Path) -> str | None:
    """Return the hash of a file's bytes; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:HASH_DIGITS]
    except OSError:
        return None


def _load(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        # The hash is right, so the file was not written by this class.
        raise ConfigError(
            f"{path} is not a checkpoint of a run: it holds more than tensors and plain values, and"
            " was not loaded"
        ) from error
    if not isinstance(state, dict):
        raise ConfigError(f"{path} is not a checkpoint of a run: it holds a {type(state).__name__}")
    return state


class _HashingFile:
    """A file that hashes what is written to it, so that gigabytes are not read again."""

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
