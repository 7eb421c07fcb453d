"""Streams that branch off a sequence: all of them read what was before where it lies, each writes its own.

A cache for each of many starts in a sequence would hold its past as often as there are starts, and every
step would read it all again: at size S, from all of 16 x 64 rows, 5 GB. Here the past is there once, and
reading it is a product of matrices with as many rows as there are starts. The weights are those of one
softmax over both parts, so what comes out is what the other way gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

Pairs = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer."""

NAME = "llmdreamer"
"""What transformers knows `attend` by."""


@dataclass(frozen=True)
class Branches:
    """The memory of N = B * n streams that begin in B sequences, for so many steps as `own` has columns."""

    past: Pairs  # each (B, heads, T, d), of whole sequences
    own: Pairs  # each (N, heads, steps, d), written in place
    last: Tensor  # (N, T), the last step that sees a token of the past; -1: none
    position: Tensor  # (N,), of the next token
    slot: Tensor  # (1,), int64, the step it is, from 0; as a number, each would be compiled anew

    def bias(self) -> Tensor:
        """0 for what the next token sees of the past, then of its own stream, else minus infinity.

        Returns:
            (N, T + steps).
        """
        keys = self.own[0][0]
        column = torch.arange(keys.shape[2], device=keys.device)
        own = (column <= self.slot).expand(keys.shape[0], -1)
        visible = torch.cat([self.last >= self.slot, own], 1)
        return torch.zeros_like(visible, dtype=keys.dtype).masked_fill(~visible, -torch.inf)


def branch_off(
    layers: Pairs, start: Tensor, position: Tensor, indices: Tensor, context: int, steps: int
) -> Branches:
    """The memory behind tokens `indices` (B, n) of B sequences, each seeing `context` tokens.

    Args:
        layers: (B, heads, T, d) of the sequences.
        start: (B, T), the first row that each row's episode has in the sequence.
        position: (B, T), of each token.
        steps: how many will follow at most, fewer than `context`: so none goes out of sight of another.
    """
    assert 0 < steps < context, (steps, context)
    batch, count = indices.shape
    row = torch.arange(batch, device=indices.device).unsqueeze(1)
    column = torch.arange(start.shape[1], device=indices.device)
    newest = indices.unsqueeze(-1)
    # The k-th step, from 0, is token newest + 1 + k, and looks back at context - 1 before itself.
    last = column + context - 2 - newest
    seen = (column <= newest) & (column >= start[row, indices].unsqueeze(-1))
    past = [(keys.detach().contiguous(), values.detach().contiguous()) for keys, values in layers]
    _, heads, _, size = past[0][0].shape
    shape = (batch * count, heads, steps, size)
    own = [(keys.new_zeros(shape), values.new_zeros(shape)) for keys, values in past]
    return Branches(
        past,
        own,
        last.masked_fill(~seen, -1).flatten(0, 1),
        (position[row, indices] + 1).flatten(),
        torch.zeros(1, dtype=torch.int64, device=indices.device),
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    past: Pairs | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: torch's own, but for streams with a past in common."""
    if past is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    assert attention_mask is not None
    before = past[module.layer_idx]  # type: ignore[index]
    return attend_both(query, before, (key, value), attention_mask, scaling), None


def attend_both(
    query: Tensor,
    past: tuple[Tensor, Tensor],
    own: tuple[Tensor, Tensor],
    bias: Tensor,
    scaling: float | None = None,
) -> Tensor:
    """One token of each of N = B * n streams: over a past that n of them share, and what is its own.

    Args:
        query: (N, heads, 1, d); as many or a multiple of the heads of keys and values.
        past: (B, heads, T, d).
        own: (N, heads, steps, d).
        bias: (N, 1, 1, T + steps), added to the scores: minus infinity for what is not to be seen.
        scaling: of the scores; None: 1 / sqrt(d).

    Returns:
        (N, 1, heads, d).
    """
    streams, _, _, size = query.shape
    batch, heads, time, _ = past[0].shape
    count, scaling = streams // batch, size**-0.5 if scaling is None else scaling
    group = query.shape[1] // heads
    each = (query * scaling).to(past[0].dtype).view(batch, count, heads, group, size)

    def together(part: Tensor) -> Tensor:
        """(B, n, heads, group, x) -> (B, heads, n * group, x), rows of one matrix a head."""
        return part.transpose(1, 2).reshape(batch, heads, count * group, part.shape[-1])

    def apart(part: Tensor) -> Tensor:
        """The inverse."""
        return part.view(batch, heads, count, group, part.shape[-1]).transpose(1, 2)

    alone = (each.reshape(streams, heads, group, size) @ own[0].transpose(-1, -2)).view(
        batch, count, heads, group, -1
    )
    scores = torch.cat([together(each) @ past[0].transpose(-1, -2), together(alone)], -1)
    # The heads of a group are side by side, and see the same.
    scores = scores.view(batch, heads, count, group, -1) + bias.view(batch, 1, count, 1, -1)
    weights = scores.softmax(-1).to(past[1].dtype).flatten(2, 3)
    mine = apart(weights[..., time:]).reshape(streams, heads, group, -1) @ own[1]
    result = apart(weights[..., :time] @ past[1]) + mine.view(batch, count, heads, group, size)
    return result.reshape(streams, 1, heads * group, size)


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
