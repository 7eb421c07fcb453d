"""Puts the texts of an episode in front of it, in the backbone's own sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmdreamer.backbones import Backbone, Cache
from llmdreamer.backbones.text import TextPrompt


@dataclass(frozen=True)
class Prompted:
    """What a backbone made of sequences with texts in them."""

    deter: Tensor  # (B, T, D), of the rows alone
    states: Cache  # of the whole sequence
    column: Tensor  # (B, T), where in it each row's token stands


def observe_prompted(
    prompt: TextPrompt,
    backbone: Backbone,
    tokens: Tensor,
    is_first: Tensor,
    observations: Mapping[str, Tensor],
) -> Prompted:
    """As `Backbone.observe`, of the sequence that has texts in front of row 0 and wherever one begins.

    A sequence that begins in the midst of an episode is told its first row's: the agent was told them,
    too. Padding stands behind a sequence's last row, where a causal model does not look.

    Args:
        tokens: (B, T, D).
        is_first: (B, T), bool.
        observations: each (B, T, ...), of the same rows.
    """
    batch, time = is_first.shape
    begins = is_first.clone()
    begins[:, 0] = True
    texts = {key: observations[key] for key in prompt.keys}
    told = {key: rows[begins.to(rows.device)] for key, rows in texts.items()}
    words, length = prompt(told)  # (M, P, D), (M,), in the order of `begins`
    added = torch.zeros_like(begins, dtype=torch.int64)
    added[begins] = length
    column = torch.arange(time, device=tokens.device) + added.cumsum(1)
    row = torch.arange(batch, device=tokens.device).unsqueeze(1)
    total = int(column[:, -1].max()) + 1
    sequence = tokens.new_zeros(batch, total, tokens.shape[-1])
    sequence[row, column] = tokens
    ahead = torch.arange(words.shape[1], 0, -1, device=tokens.device)  # P .. 1 before the row
    spoken = ahead <= length.unsqueeze(1)
    place = column[begins].unsqueeze(1) - ahead
    of = row.expand(batch, time)[begins]
    sequence[of.unsqueeze(1).expand_as(place)[spoken], place[spoken]] = words[spoken].to(
        tokens.dtype
    )
    first = begins.new_zeros(batch, total)
    first[of, column[begins] - length] = True
    deter, states = backbone.observe(sequence, first)
    return Prompted(deter[row, column], states, column)


def begin_prompted(
    prompt: TextPrompt,
    backbone: Backbone,
    state: Cache,
    is_first: Tensor,
    observations: Mapping[str, Tensor],
) -> Cache:
    """The memory of N streams where some begin: emptied there, and told its texts.

    Args:
        is_first: (N,), bool.
        observations: each (N, ...), of the rows about to be taken in.
    """
    if not is_first.any():
        return state
    words, length = prompt({key: observations[key] for key in prompt.keys})
    told = backbone.initial_cache(len(length))
    most = words.shape[1]
    # All end together; what a shorter one has in front of it is forgotten where it begins.
    for place in range(most):
        told = backbone.reset(told, length == most - place)
        _, told = backbone.step(words[:, place], told)
    return backbone.replace(state, told, is_first)
