"""Streams that start inside a sequence and share its keys and values; each stream writes its own after that.

With a cache for each start, every stream would hold a copy of its prefix, and each step would read all
copies: 5 GB at size S from all 16 x 64 time steps. Here the prefix exists once, and reading it is one
matrix product with a row for each start. One softmax covers prefix and suffix, so the outputs are the
same as with copies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

KeysAndValues = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer."""

ATTENTION_NAME = "llmdreamer"
"""Name under which `attend` is registered with transformers."""


@dataclass(frozen=True)
class SharedPrefixCache:
    """Cache of N = B * n streams that start in B sequences, for as many steps as `suffix` has slots."""

    prefix: KeysAndValues  # each (B, heads, T, d), of whole sequences
    suffix: KeysAndValues  # each (N, heads, steps, d), of each stream; written in place
    last_step: Tensor  # (N, T), the last step that sees this token of the prefix; -1: none
    position: Tensor  # (N,), of the next token
    slot: Tensor  # (1,), int64, the next step, from 0; a Python int would recompile for each value

    def bias(self) -> Tensor:
        """Return 0 for what the next token sees of prefix and suffix, and minus infinity for the rest.

        Returns:
            (N, T + steps).
        """
        keys = self.suffix[0][0]
        step = torch.arange(keys.shape[2], device=keys.device)
        suffix_visible = (step <= self.slot).expand(keys.shape[0], -1)
        visible = torch.cat([self.last_step >= self.slot, suffix_visible], 1)
        return torch.zeros_like(visible, dtype=keys.dtype).masked_fill(~visible, -torch.inf)


def share_prefix(
    layers: KeysAndValues,
    episode_start: Tensor,
    position: Tensor,
    indices: Tensor,
    context: int,
    steps: int,
) -> SharedPrefixCache:
    """Return the cache after tokens `indices` (B, n) of B sequences, each seeing `context` tokens.

    Args:
        layers: keys and values (B, heads, T, d) of the sequences.
        episode_start: (B, T), the index of the first token of each token's episode.
        position: (B, T), of each token.
        steps: largest number of steps to follow. Fewer than `context`, so that every new token sees
            all earlier new ones.
    """
    assert 0 < steps < context, (steps, context)
    batch_size, count = indices.shape
    batch = torch.arange(batch_size, device=indices.device).unsqueeze(1)
    time = torch.arange(episode_start.shape[1], device=indices.device)
    newest = indices.unsqueeze(-1)
    # Step k, from 0, is token newest + 1 + k. It sees the context - 1 tokens before it.
    last_step = time + context - 2 - newest
    visible = (time <= newest) & (time >= episode_start[batch, indices].unsqueeze(-1))
    prefix = [(keys.detach().contiguous(), values.detach().contiguous()) for keys, values in layers]
    _, heads, _, size = prefix[0][0].shape
    shape = (batch_size * count, heads, steps, size)
    suffix = [(keys.new_zeros(shape), values.new_zeros(shape)) for keys, values in prefix]
    return SharedPrefixCache(
        prefix,
        suffix,
        last_step.masked_fill(~visible, -1).flatten(0, 1),
        (position[batch, indices] + 1).flatten(),
        torch.zeros(1, dtype=torch.int64, device=indices.device),
    )


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prefix: KeysAndValues | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute attention as transformers calls it: torch's own, unless the streams share a prefix."""
    if prefix is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
    assert attention_mask is not None
    layer_prefix = prefix[module.layer_idx]  # type: ignore[index]
    output = attend_prefix_and_suffix(query, layer_prefix, (key, value), attention_mask, scaling)
    return output, None


def attend_prefix_and_suffix(
    query: Tensor,
    prefix: tuple[Tensor, Tensor],
    suffix: tuple[Tensor, Tensor],
    bias: Tensor,
    scaling: float | None = None,
) -> Tensor:
    """Attend with one token of each of N = B * n streams to a prefix that n of them share and a suffix.

    Args:
        query: (N, heads, 1, d); the number of heads is a multiple of that of the keys and values.
        prefix: keys and values (B, heads, T, d).
        suffix: keys and values (N, heads, steps, d), of each stream.
        bias: (N, 1, 1, T + steps), added to the scores: minus infinity hides a token.
        scaling: of the scores; None: 1 / sqrt(d).

    Returns:
        (N, 1, heads, d).
    """
    streams, _, _, size = query.shape
    batch, heads, time, _ = prefix[0].shape
    count, scaling = streams // batch, size**-0.5 if scaling is None else scaling
    group = query.shape[1] // heads
    scaled = (query * scaling).to(prefix[0].dtype).view(batch, count, heads, group, size)

    def merge_streams(tensor: Tensor) -> Tensor:
        """(B, n, heads, group, x) -> (B, heads, n * group, x), one matrix for each head."""
        return tensor.transpose(1, 2).reshape(batch, heads, count * group, tensor.shape[-1])

    def split_streams(tensor: Tensor) -> Tensor:
        """Invert `merge_streams`."""
        return tensor.view(batch, heads, count, group, tensor.shape[-1]).transpose(1, 2)

    suffix_scores = (
        scaled.reshape(streams, heads, group, size) @ suffix[0].transpose(-1, -2)
    ).view(batch, count, heads, group, -1)
    prefix_scores = merge_streams(scaled) @ prefix[0].transpose(-1, -2)
    scores = torch.cat([prefix_scores, merge_streams(suffix_scores)], -1)
    # The query heads of a group are adjacent and see the same tokens.
    scores = scores.view(batch, heads, count, group, -1) + bias.view(batch, 1, count, 1, -1)
    weights = scores.softmax(-1).to(prefix[1].dtype).flatten(2, 3)
    suffix_weights = split_streams(weights[..., time:]).reshape(streams, heads, group, -1)
    suffix_output = (suffix_weights @ suffix[1]).view(batch, count, heads, group, size)
    output = split_streams(weights[..., :time] @ prefix[1]) + suffix_output
    return output.reshape(streams, 1, heads * group, size)


ALL_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, attend)
