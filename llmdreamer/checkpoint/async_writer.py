"""Checkpoints written beside training: the state is copied at once, a thread of its own writes the copy."""

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

SHARE = 0.25
"""Of the memory that is free: what a copy may take. A larger state is written from where it is."""


class Saver:
    """Writes a run's checkpoints, one at a time, while training goes on.

    A state changes with the next update, so `save` copies it before it returns. Where the copy would take
    more than `SHARE` of the memory that is free, there is none: `save` returns once the state is written.

    As a context it ends when the last checkpoint is written, whatever ended the run.

    Args:
        checkpoints: where to.
        check: sees each state before it is written, and raises if it must not be.
        thread: that writes, if it is another saver's (see `beside`).
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
        self._figures: dict[str, float] = {}
        self._said = False

    def __enter__(self) -> Saver:
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

    def beside(self, checkpoints: Checkpoints) -> Saver:
        """One for files of another kind, by the same thread: what was asked for first is there first.

        Leaving this one's context waits for them, too.
        """
        return Saver(checkpoints, self._check, self._thread)

    def save(
        self, state: dict[str, Any], policy_step: int, before: Callable[[], None] | None = None
    ) -> None:
        """Have a state written as `Checkpoints.save` does; one still being written is waited for.

        Args:
            before: as for `Checkpoints.save`; it runs in the thread that writes.

        Raises:
            Exception: what `check` raised, of this state or, if it had not been told yet, of the last.
        """
        self.wait()  # a second copy would be held, and the newer file might come first
        if _bytes(state) <= SHARE * psutil.virtual_memory().available:
            copy = _copied(state, {})
            self._writing = self._thread.submit(self._write, copy, policy_step, before)
            return
        self._writing = self._thread.submit(self._write, state, policy_step, before)
        if not self._said:
            self._said = True
            log.info(
                "training waits while checkpoints of %.1f GB are written: memory for a copy is short",
                _bytes(state) / 1e9,
            )
        self.wait()

    def look(self) -> None:
        """Raise what `check` raised in the meantime; does not wait."""
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Return once nothing is being written. Raises what `check` raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            self._figures = writing.result()

    def figures(self) -> dict[str, float]:
        """Size and time of the newest checkpoint known to be written, once: then empty until the next."""
        figures, self._figures = self._figures, {}
        return figures

    def _write(
        self, state: dict[str, Any], policy_step: int, before: Callable[[], None] | None
    ) -> dict[str, float]:
        began = time.perf_counter()
        if self._check is not None:
            self._check(state)
        path = self.checkpoints.save(state, policy_step, before)
        if path is None:
            return {}
        return {
            "time/checkpoint_seconds": time.perf_counter() - began,
            "system/checkpoint_bytes": float(path.stat().st_size),
        }


def _copied(state: Any, done: dict[tuple[Any, ...], Tensor]) -> Any:
    """The same of tensors on the CPU that nothing else holds. What is one tensor twice stays one, so
    that tied weights are in a file once."""
    if isinstance(state, Tensor):
        key = _identity(state)
        if key not in done:
            done[key] = state.detach().to("cpu", copy=True)
        return done[key]
    if isinstance(state, dict):
        return {name: _copied(part, done) for name, part in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_copied(part, done) for part in state)
    return state


def _bytes(state: Any) -> int:
    """Of all tensors, each counted once."""
    return sum({_identity(tensor): tensor.nbytes for tensor in _tensors(state)}.values())


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from _tensors(part)


def _identity(tensor: Tensor) -> tuple[Any, ...]:
    shape: tuple[int, ...] = tuple(tensor.shape)
    return (tensor.device, tensor.data_ptr(), shape, tensor.stride(), tensor.dtype)
