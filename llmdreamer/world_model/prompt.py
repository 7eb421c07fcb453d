"""Inserts the texts of an episode into the backbone's sequence, in front of its time steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from llmdreamer.backbones import Backbone, Cache
from llmdreamer.backbones.text import TextPrompt


@dataclass(frozen=True)
class PromptedSequence:
    """The backbone's output for sequences that contain texts."""

    deter: Tensor  # (B, T, D), of the time steps, without the texts
    caches: Cache  # of the whole sequence
    token_index: Tensor  # (B, T), the position of each time step's token in the sequence


def observe_with_prompt(
    prompt: TextPrompt,
    backbone: Backbone,
    tokens: Tensor,
    is_first: Tensor,
    observations: Mapping[str, Tensor],
) -> PromptedSequence:
    """Run `Backbone.observe` with texts inserted before time step 0 and before each episode's first step.

    A sequence that begins in the middle of an episode gets the texts of its time step 0, because the acting
    agent has read them at the start of that episode. Padding follows the last time step, so a causal model
    does not see it.

    Args:
        tokens: (B, T, D).
        is_first: (B, T), bool. On the CPU, it is read without waiting for the device, as the texts are.
        observations: each (B, T, ...), of the same time steps.
    """
    (batch, time), device = is_first.shape, tokens.device
    # All positions are computed on the CPU, because the length of the sequence depends on them.
    begins = is_first.cpu().clone()
    begins[:, 0] = True
    prompts = {key: observations[key].cpu()[begins] for key in prompt.keys}
    prompt_tokens, length = prompt(prompts)  # (M, P, D), (M,), in the order of `begins`
    added = torch.zeros_like(begins, dtype=torch.int64)
    added[begins] = length
    token_index = torch.arange(time) + added.cumsum(1)
    batch_index = torch.arange(batch).unsqueeze(1)
    total = int(token_index[:, -1].max()) + 1
    ahead = torch.arange(prompt_tokens.shape[1], 0, -1)  # P .. 1 before the step
    is_prompt = ahead <= length.unsqueeze(1)
    prompt_index = token_index[begins].unsqueeze(1) - ahead
    prompt_batch = batch_index.expand(batch, time)[begins]
    prompt_batch_index = prompt_batch.unsqueeze(1).expand_as(prompt_index)
    first = begins.new_zeros(batch, total)
    first[prompt_batch, token_index[begins] - length] = True

    def upload(index: Tensor) -> Tensor:
        return index.to(device, non_blocking=True)

    step_at = upload(batch_index), upload(token_index)
    prompt_at = upload(prompt_batch_index[is_prompt]), upload(prompt_index[is_prompt])
    valid = upload(is_prompt.flatten().nonzero().squeeze(1))
    sequence = tokens.new_zeros(batch, total, tokens.shape[-1])
    sequence[step_at] = tokens
    sequence[prompt_at] = prompt_tokens.flatten(0, 1)[valid].to(tokens.dtype)
    deter, caches = backbone.observe(sequence, first if backbone.plans_on_cpu else upload(first))
    return PromptedSequence(deter[step_at], caches, step_at[1])


def reset_with_prompt(
    prompt: TextPrompt,
    backbone: Backbone,
    cache: Cache,
    is_first: Tensor,
    observations: Mapping[str, Tensor],
) -> Cache:
    """Replace the cache of each stream that starts an episode by one that has read the episode's texts.

    Args:
        cache: of N streams.
        is_first: (N,), bool. On the CPU, it is read without waiting for the device.
        observations: each (N, ...), of the time step that comes next.
    """
    if not is_first.any():
        return cache
    prompt_tokens, length = prompt({key: observations[key] for key in prompt.keys})
    prompted = backbone.initial_cache(len(length))
    longest = prompt_tokens.shape[1]
    # Texts are padded in front. The reset where a text begins removes its padding from the cache.
    for i in range(longest):
        begins = (length == longest - i).to(prompt_tokens.device, non_blocking=True)
        prompted = backbone.reset(prompted, begins)
        _, prompted = backbone.step(prompt_tokens[:, i], prompted)
    return backbone.replace(cache, prompted, is_first.to(prompt_tokens.device, non_blocking=True))
