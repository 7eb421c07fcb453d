"""Any causal transformers model as a backbone: each step encodes the window of the last tokens again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from llmdreamer.backbones.base import Backbone
from llmdreamer.utils.errors import ConfigError


@dataclass(frozen=True)
class SequenceTokenCache:
    """Tokens of whole sequences, as `observe` returns them for `select`."""

    tokens: Tensor  # (B, T, D)
    window_start: Tensor  # (B, T), the index of the first token of each token's window


@dataclass(frozen=True)
class TokenWindowCache:
    """The last tokens of N streams, oldest first."""

    tokens: Tensor  # (N, context, D); arbitrary from index `length` on
    length: Tensor  # (N,), at most context


@dataclass(frozen=True)
class WindowPlan:
    """The windows that a batch of B sequences of T tokens needs. Tokens are counted over the flat batch."""

    source: NDArray[
        np.int64
    ]  # (W, L), the token at each place of W windows; arbitrary behind a window's end
    window: NDArray[np.int64]  # (B, T), the window that encodes each token
    offset: NDArray[np.int64]  # (B, T), the token's place in it
    window_start: NDArray[np.int64]  # (B, T), the index of the window's first token in the sequence


def plan_windows(is_first: NDArray[np.bool_], context: int) -> WindowPlan:
    """Return the windows of at most `context` tokens in which each token sees its episode.

    The number of windows depends on where episodes begin. It is planned on the CPU, so that a device that
    computes need not be waited for.

    Args:
        is_first: (B, T).
    """
    batch, length = is_first.shape
    time = np.arange(length)
    episode_start = np.maximum.accumulate(np.where(is_first, time, 0), 1)
    window_start = np.maximum(episode_start, time - context + 1)
    # Time steps with the same window start share one window: later tokens do not change earlier outputs.
    first_token = np.arange(0, batch * length, length)[:, None] + window_start
    windows, window = np.unique(first_token, return_inverse=True)
    offset = time - window_start
    last_of_sequence = windows // length * length + length - 1
    source = windows[:, None] + np.arange(offset.max() + 1)
    source = np.minimum(source, last_of_sequence[:, None])
    return WindowPlan(source, window.reshape(is_first.shape), offset, window_start)


class WindowBackbone(Backbone):
    """A model that only has to be causal: it gets no cache, mask or positions from us.

    A window starts at the model's first position and is padded at the end, where a causal model does
    not look. Padding at the front would depend on how the model treats masks.

    The cost: a step encodes a whole window. So does every training time step whose episode is longer
    than `context`; the first `context` steps of an episode share one pass.
    """

    def __init__(self, model: PreTrainedModel, context: int, input_rms: float) -> None:
        super().__init__()
        self.model = model
        self.width = int(model.config.hidden_size)
        self.context = context
        self.input_rms = input_rms

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, SequenceTokenCache]:
        plan = plan_windows(is_first.cpu().numpy(), self.context)
        source, window, offset, window_start = (
            torch.from_numpy(array).to(tokens.device, non_blocking=True)
            for array in (plan.source, plan.window, plan.offset, plan.window_start)
        )
        encoded = self._encode(tokens.flatten(0, 1)[source])
        return encoded[window, offset], SequenceTokenCache(tokens.detach(), window_start)

    def select(
        self, caches: SequenceTokenCache, indices: Tensor, steps: int | None = None
    ) -> TokenWindowCache:
        batch = torch.arange(indices.shape[0], device=indices.device).unsqueeze(1)
        window_start = caches.window_start[batch, indices]
        offsets = torch.arange(self.context, device=indices.device)
        source = (window_start.unsqueeze(-1) + offsets).clamp(max=caches.tokens.shape[1] - 1)
        tokens = caches.tokens[batch.unsqueeze(-1), source].flatten(0, 1)
        return TokenWindowCache(tokens, (indices - window_start + 1).flatten())

    def initial_cache(self, streams: int) -> TokenWindowCache:
        device = next(self.model.parameters()).device
        return TokenWindowCache(
            torch.zeros(streams, self.context, self.width, device=device),
            torch.zeros(streams, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def step(self, token: Tensor, cache: TokenWindowCache) -> tuple[Tensor, TokenWindowCache]:
        full = (cache.length == self.context)[:, None, None]
        tokens = torch.where(full, cache.tokens.roll(-1, 1), cache.tokens)
        stream = torch.arange(token.shape[0], device=token.device)
        last = cache.length.clamp(max=self.context - 1)
        tokens[stream, last] = token.to(tokens.dtype)
        # Only the CPU knows the longest window without waiting. Other devices encode the padding, too.
        longest = int(last.max()) + 1 if tokens.device.type == "cpu" else self.context
        encoded = self._encode(tokens[:, :longest])
        return encoded[stream, last], TokenWindowCache(tokens, last + 1)

    def reset(self, cache: TokenWindowCache, mask: Tensor) -> TokenWindowCache:
        return TokenWindowCache(cache.tokens, cache.length.masked_fill(mask, 0))

    def replace(
        self, cache: TokenWindowCache, other: TokenWindowCache, mask: Tensor
    ) -> TokenWindowCache:
        tokens = torch.where(mask[:, None, None], other.tokens, cache.tokens)
        return TokenWindowCache(tokens, torch.where(mask, other.length, cache.length))

    def cache_to_dict(self, cache: TokenWindowCache) -> dict[str, Tensor]:
        return {"tokens": cache.tokens, "length": cache.length}

    def cache_from_dict(self, tensors: dict[str, Tensor]) -> TokenWindowCache:
        return TokenWindowCache(tensors["tokens"], tensors["length"])

    def _encode(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.model(inputs_embeds=tokens, use_cache=False).last_hidden_state
        return hidden


def make_window(model: PreTrainedModel, context: int, input_rms: float) -> WindowBackbone:
    """Return the backbone of any causal model that accepts embeddings as input.

    Raises:
        ConfigError: if the model is not causal, does not accept embeddings, or has fewer positions
            than `context`.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and context > positions:
        raise ConfigError(
            f"algo.world_model.hf_model.seq_len={context}: this {model.config.model_type} has"
            f" {positions} positions; choose at most {positions}"
        )
    _check_causal(model)
    return WindowBackbone(model, context, input_rms)


@torch.no_grad()
def _check_causal(model: PreTrainedModel) -> None:
    """Run the model to check that it accepts embeddings and that later tokens do not change outputs.

    Raises:
        ConfigError: if the check fails.
    """
    kind, width = model.config.model_type, int(model.config.hidden_size)
    # Fixed numbers, because building a backbone may draw random numbers for its weights only.
    token = torch.arange(3 * width, dtype=torch.float32).view(1, 3, width).cos()
    tokens = torch.cat([token, token])
    tokens[1, -1] = token[0, 0].neg()
    training = model.training
    try:
        hidden = model.eval()(inputs_embeds=tokens, use_cache=False).last_hidden_state
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"a {kind} model cannot be a backbone: {reason}") from error
    model.train(training)
    if hidden.shape != tokens.shape:
        raise ConfigError(
            f"a {kind} model cannot be a backbone: its outputs have {hidden.shape[-1]} numbers a"
            f" token, its inputs {width}; choose a model with equal widths"
        )
    if not torch.allclose(hidden[0, :-1], hidden[1, :-1], atol=1e-4):
        raise ConfigError(
            f"a {kind} model cannot be a backbone: it is not causal; choose a causal language model"
        )
