"""Non-finite numbers: counts skipped updates and finds the first tensor or module that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmdreamer.types import SequenceBatch


class SkippedUpdates:
    """Counts the updates that the optimizer skipped.

    Flags stay on the device until `sync`, which waits for the device. Call it where the device has just been
    synchronized.
    """

    def __init__(self) -> None:
        self.total = 0  # in the whole run
        self.consecutive = 0  # up to the newest update
        self.unreported = 0
        self._flags: list[Tensor] = []

    def add(self, flag: Tensor) -> None:
        """Record the flag of one update: a scalar, 1 if it was skipped."""
        self._flags.append(flag)

    def sync(self) -> None:
        """Update the counts from the flags."""
        if not self._flags:
            return
        flags = torch.stack(self._flags).tolist()
        self._flags.clear()
        for flag in flags:
            self.consecutive = self.consecutive + 1 if flag else 0
        self.total += int(sum(flags))
        self.unreported += int(sum(flags))

    def state_dict(self) -> dict[str, int]:
        self.sync()
        return {"total": self.total, "consecutive": self.consecutive}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.total, self.consecutive = state["total"], state["consecutive"]


def trace_source(agent: nn.Module, batch: SequenceBatch, forward: Callable[[], object]) -> str:
    """Name the first non-finite tensor of the batch, or the first module whose output is not finite.

    Args:
        forward: computes the loss of the batch. Random generators are restored afterwards.
    """
    for name, values in _named_tensors(batch):
        if not values.isfinite().all():
            return f"the replayed {name}"
    sources: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def check(module: nn.Module, inputs: object, output: object) -> None:
            if not sources and not _is_finite(output):
                sources.append(name)

        return check

    hooks = [
        module.register_forward_hook(watch(name)) for name, module in agent.named_modules() if name
    ]
    devices = [batch.reward.device] if batch.reward.is_cuda else []
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            forward()
    finally:
        for hook in hooks:
            hook.remove()
    return sources[0] if sources else "a loss or a gradient (all module outputs are finite)"


def find_non_finite(state: Any, path: str = "") -> str | None:
    """Return the path of the first non-finite tensor in nested dicts and lists; None if there is none."""
    if isinstance(state, Tensor):
        return None if bool(state.isfinite().all()) else path
    if isinstance(state, dict):
        children = state.items()
    elif isinstance(state, list | tuple):
        children = enumerate(state)  # type: ignore[assignment]
    else:
        return None
    paths = (
        find_non_finite(child, f"{path}.{name}" if path else str(name)) for name, child in children
    )
    return next(filter(None, paths), None)


def _named_tensors(batch: SequenceBatch) -> Iterator[tuple[str, Tensor]]:
    for key, value in batch.observations.items():
        yield f"observation '{key}'", value
    yield "action", batch.action
    yield "reward", batch.reward


def _is_finite(output: object) -> bool:
    outputs = output if isinstance(output, list | tuple) else [output]
    return all(bool(x.isfinite().all()) for x in outputs if isinstance(x, Tensor))
