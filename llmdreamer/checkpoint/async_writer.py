"""Writes checkpoints beside training: the state is copied at once, and a thread writes the copy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import psutil
from torch import Tensor

from llmdreamer.checkpoint.files import Checkpoints

log = logging.getLogger(__name__)

MAX_COPY_SHARE = 0.25
"""Largest fraction of free memory that the copy may use. A larger state is written without a copy."""


class CheckpointWriter:
    """Writes a run's checkpoints, one at a time, while training goes on.

    The next update changes the state, so `save` copies it before it returns. If the copy would take more than
    `MAX_COPY_SHARE` of the free memory, `save` instead waits until the state is written.

    Used as a context manager, it waits for the last checkpoint on exit.

    Args:
        checkpoints: the folder to write to.
        check: called with each state before it is written; it raises to refuse the state.
        thread: the writing thread of another writer (see `with_folder`); None: a new one.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        check: Callable[[dict[str, Any]], None] | None = None,
        thread: ThreadPoolExecutor | None = None,
    ) -> None:
        self.checkpoints = checkpoints
        self._check = check
        self._thread = thread or ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[dict[str, float]] | None = None
        self._metrics: dict[str, float] = {}
        self._warned = False

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        if error is None:
            self.wait()

    def with_folder(self, checkpoints: Checkpoints) -> CheckpointWriter:
        """Return a writer for another folder that shares the thread, so files are written in order.

        Leaving the context of this writer waits for both.
        """
        return CheckpointWriter(checkpoints, self._check, self._thread)

    def save(
        self, state: dict[str, Any], policy_step: int, before: Callable[[], None] | None = None
    ) -> None:
        """Start writing a state, as `Checkpoints.save` does, after waiting for the previous one.

        Args:
            before: as for `Checkpoints.save`; it runs in the writing thread.

        Raises:
            Exception: what `check` raised for this state, or for the previous one.
        """
        self.wait()  # one copy in memory at a time, and files in order
        if _bytes(state) <= MAX_COPY_SHARE * psutil.virtual_memory().available:
            copy = _copy_to_cpu(state, {})
            self._writing = self._thread.submit(self._write, copy, policy_step, before)
            return
        self._writing = self._thread.submit(self._write, state, policy_step, before)
        if not self._warned:
            self._warned = True
            log.info(
                "too little free memory to copy checkpoints of %.1f GB: training waits during writes",
                _bytes(state) / 1e9,
            )
        self.wait()

    def raise_pending(self) -> None:
        """Raise what `check` has raised since, without waiting."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written; raise what `check` raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._metrics = writing.result()

    def take_metrics(self) -> dict[str, float]:
        """Return size and time of the newest written checkpoint; empty until there is another."""
        metrics, self._metrics = self._metrics, {}
        return metrics

    def _write(
        self, state: dict[str, Any], policy_step: int, before: Callable[[], None] | None
    ) -> dict[str, float]:
        start = time.perf_counter()
        if self._check is not None:
            self._check(state)
        path = self.checkpoints.save(state, policy_step, before)
        if path is None:
            return {}
        return {
            "time/checkpoint_seconds": time.perf_counter() - start,
            "system/checkpoint_bytes": float(path.stat().st_size),
        }


def _copy_to_cpu(state: Any, copies: dict[tuple[Any, ...], Tensor]) -> Any:
    """Copy all tensors to the CPU. Tied weights stay one tensor, so that a file holds them once."""
    if isinstance(state, Tensor):
        key = _identity(state)
        if key not in copies:
            copies[key] = state.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(state, dict):
        return {name: _copy_to_cpu(value, copies) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copy_to_cpu(value, copies) for value in state)
    return state


def _bytes(state: Any) -> int:
    """Return the size of all distinct tensors."""
    return sum({_identity(tensor): tensor.nbytes for tensor in _tensors(state)}.values())


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    shape: tuple[int, ...] = tuple(tensor.shape)
    return (tensor.device, tensor.data_ptr(), shape, tensor.stride(), tensor.dtype)
