"""Several processes that train one agent: what they tell each other. Alone, all of it is the identity.

Started by `torchrun --nproc-per-node=N run.py ...`, they have the same weights, each its own environments
and replay, and make every update together: the gradients of their batches are averaged, so that N batches of
B sequences give the update that one batch of N * B would. Torch's own state says who is who.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Thing = TypeVar("Thing")

PATIENCE = timedelta(days=1)
"""How long one process may wait for another: the first alone evaluates and writes checkpoints."""


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun has started, if it has, until the end of the context."""
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """How many processes there are, >= 1."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that evaluates, records and writes checkpoints."""
    return rank() == 0


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes: one message for all of them."""
    if size() == 1:
        return
    gradients = [param.grad for param in parameters if param.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = mean(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def mean(values: Tensor) -> Tensor:
    """The mean of a tensor over the processes, on each of them."""
    if size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / size()


def gathered(values: Tensor) -> Tensor:
    """The tensors of all processes, of one shape, one behind the other along their first dimension."""
    if size() == 1:
        return values
    parts = [torch.empty_like(values) for _ in range(size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


def largest(value: int) -> int:
    """The largest of the processes' numbers, on each of them."""
    if size() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found.item())


def all_of(fact: bool) -> bool:
    """Whether it holds in every process."""
    return not largest(int(not fact))


def wait_for_all() -> None:
    """Return once every process has come here."""
    largest(0)


def collected(thing: Thing) -> list[Thing]:
    """What each process has, in the order of their ranks, on the first; on others an empty list."""
    if size() == 1:
        return [thing]
    things: list[Thing | None] | None = [None] * size() if is_first() else None
    dist.gather_object(thing, things)
    return [thing for thing in things or [] if thing is not None]


def of_the_first(thing: Thing) -> Thing:
    """What the first process has, on each of them."""
    if size() == 1:
        return thing
    box = [thing]
    dist.broadcast_object_list(box)
    return box[0]


@torch.no_grad()
def share_weights(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers."""
    if size() == 1:
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor, 0)
