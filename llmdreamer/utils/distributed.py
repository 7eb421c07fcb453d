"""Communication between the processes that train one agent. With one process the calls do nothing.

`torchrun --nproc-per-node=N run.py ...` starts N processes with equal weights. Each has its own environments
and replay. Every update averages their gradients, so N batches of B sequences give the update of one batch of
N * B. Ranks and sizes come from torch.distributed.
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

from llmdreamer.utils.torchrun import check_variables

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(days=1)
"""Longest wait for another process: rank 0 evaluates and writes checkpoints while the others wait."""


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group within the context, if torchrun started several processes.

    Raises:
        ConfigError: if torchrun's variables are incomplete.
    """
    if not dist.is_torchelastic_launched():
        yield
        return
    check_variables()
    if int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def size() -> int:
    """Return the number of processes, >= 1."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Return True in rank 0, the process that evaluates, records and writes checkpoints."""
    return rank() == 0


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over the processes, in one message."""
    if size() == 1:
        return
    gradients = [param.grad for param in parameters if param.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    flat = mean(flat)
    averages = flat.split([gradient.numel() for gradient in gradients])
    for gradient, average in zip(gradients, averages, strict=True):
        gradient.copy_(average.view_as(gradient))


def mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor over the processes."""
    if size() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / size()


def all_gather(values: Tensor) -> Tensor:
    """Concatenate the tensors of all processes, which have one shape, along the first dimension."""
    if size() == 1:
        return values
    gathered = [torch.empty_like(values) for _ in range(size())]
    dist.all_gather(gathered, values.contiguous())
    return torch.cat(gathered)


def all_reduce_max(value: int) -> int:
    """Return the largest value among the processes."""
    if size() == 1:
        return value
    maximum = torch.tensor(value)
    dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return int(maximum.item())


def all_true(condition: bool) -> bool:
    """Return True if the condition holds in every process."""
    return not all_reduce_max(int(not condition))


def barrier() -> None:
    """Return once every process has called this."""
    all_reduce_max(0)


def gather_objects(item: T) -> list[T]:
    """Return the items of all processes, by rank, in rank 0; return an empty list in other ranks."""
    if size() == 1:
        return [item]
    items: list[T | None] | None = [None] * size() if is_main() else None
    dist.gather_object(item, items)
    return [gathered for gathered in items or [] if gathered is not None]


def broadcast_object(item: T) -> T:
    """Return the item of rank 0 in every process."""
    if size() == 1:
        return item
    items = [item]
    dist.broadcast_object_list(items)
    return items[0]


@torch.no_grad()
def broadcast_parameters(module: nn.Module) -> None:
    """Copy the parameters and buffers of rank 0 to every process."""
    if size() == 1:
        return
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor, 0)
