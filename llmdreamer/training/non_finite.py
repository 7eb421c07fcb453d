"""What follows when numbers stop being finite: skipped updates are counted, traced, and at last given up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from llmdreamer.types import SequenceBatch


class Guard:
    """Counts the updates that the optimiser skipped.

    Their flags stay on the device until `look`, which waits for what it reads: call it where the
    device has just been waited for anyway.
    """

    def __init__(self) -> None:
        self.skipped = 0  # updates, in the whole run
        self.in_a_row = 0  # of the newest ones
        self.fresh = 0  # not yet reported
        self._flags: list[Tensor] = []

    def note(self, flag: Tensor) -> None:
        """Take the flag of one update: a scalar, 1 if it was skipped."""
        self._flags.append(flag)

    def look(self) -> None:
        """Bring the counts up to date."""
        if not self._flags:
            return
        flags = torch.stack(self._flags).tolist()
        self._flags.clear()
        for flag in flags:
            self.in_a_row = self.in_a_row + 1 if flag else 0
        self.skipped += int(sum(flags))
        self.fresh += int(sum(flags))

    def state_dict(self) -> dict[str, int]:
        self.look()
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def trace(agent: nn.Module, batch: SequenceBatch, forward: Callable[[], object]) -> str:
    """Name the first thing that is not finite: in the batch, or else the module of `agent` that makes
    it as `forward` runs on that batch. Random generators are left as they were.
    """
    for name, numbers in _numbers(batch):
        if not numbers.isfinite().all():
            return f"the replayed {name}"
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def look(module: nn.Module, inputs: object, output: object) -> None:
            if not found and not _is_finite(output):
                found.append(name)

        return look

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
    return found[0] if found else "no module's output: a loss or a gradient"


def not_finite(state: Any, path: str = "") -> str | None:
    """The path of the first tensor in nested dicts and lists that is not finite; None if all are."""
    if isinstance(state, Tensor):
        return None if bool(state.isfinite().all()) else path
    if isinstance(state, dict):
        parts = state.items()
    elif isinstance(state, list | tuple):
        parts = enumerate(state)  # type: ignore[assignment]
    else:
        return None
    found = (not_finite(part, f"{path}.{name}" if path else str(name)) for name, part in parts)
    return next(filter(None, found), None)


def _numbers(batch: SequenceBatch) -> Iterator[tuple[str, Tensor]]:
    for key, shown in batch.observations.items():
        yield f"observation '{key}'", shown
    yield "action", batch.action
    yield "reward", batch.reward


def _is_finite(output: object) -> bool:
    parts = output if isinstance(output, list | tuple) else [output]
    return all(bool(x.isfinite().all()) for x in parts if isinstance(x, Tensor))
