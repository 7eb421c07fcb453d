"""Any causal transformers model as a backbone: each step encodes the window of the last tokens again."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from llmdreamer.backbones.hf_backbone import HuggingFaceBackbone
from llmdreamer.backbones.model_loading import reason
from llmdreamer.backbones.rotation import constant_rotation_limit
from llmdreamer.utils.errors import ConfigError

SEQ_LEN = "algo.world_model.hf_model.seq_len"
TOLERANCE = 1e-4
"""Largest difference of outputs that counts as rounding."""


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


class WindowBackbone(HuggingFaceBackbone):
    """A model that only has to be causal: it gets no cache, mask or positions from us.

    A window starts at the model's first position and is padded at the end, where a causal model does
    not look. Padding at the front would depend on how the model treats masks.

    The cost: a step encodes a whole window. So does every training time step whose episode is longer
    than `context`; the first `context` steps of an episode share one pass.
    """

    plans_on_cpu = True

    def __init__(self, model: PreTrainedModel, context: int, input_rms: float) -> None:
        super().__init__(model, input_rms)
        self.context = context

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, SequenceTokenCache]:
        plan = plan_windows(is_first.cpu().numpy(), self.context)
        source, window, offset, window_start = (
            torch.from_numpy(array).to(tokens.device, non_blocking=True)
            for array in (plan.source, plan.window, plan.offset, plan.window_start)
        )
        encoded = self.encode(tokens.flatten(0, 1)[source])
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
        encoded = self.encode(tokens[:, :longest])
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

    def encode(self, windows: Tensor) -> Tensor:
        """Encode windows of Q tokens in one pass: (N, Q, D) -> (N, Q, D)."""
        return self._encode(windows, use_cache=False)


def make_window(model: PreTrainedModel, context: int, input_rms: float) -> WindowBackbone:
    """Return the backbone of any causal model that accepts embeddings as input.

    Raises:
        ConfigError: if the model is not causal, does not accept embeddings, has fewer positions than
            `context`, or encodes a token in another way if the pass has more tokens.
    """
    kind = model.config.model_type
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and context > positions:
        raise ConfigError(
            f"{SEQ_LEN}={context}: this {kind} has {positions} positions; choose at most {positions}"
        )
    limit = constant_rotation_limit(model.config)
    if limit is not None and context > limit:
        raise ConfigError(
            f"{SEQ_LEN}={context}: this {kind} rotates all tokens in another way if there are more than"
            f" {limit}; choose at most {limit}"
        )
    backbone = WindowBackbone(model, context, input_rms)
    _check_outputs(backbone)
    return backbone


@torch.no_grad()
def _check_outputs(backbone: WindowBackbone) -> None:
    """Run the model to check that it accepts embeddings, and that no other token changes its outputs.

    Raises:
        ConfigError: if the check fails.
    """
    kind, width = backbone.model.config.model_type, backbone.width
    refusal = f"a {kind} model cannot be a backbone"
    length = max(backbone.context, 3)
    # Fixed numbers, because building a backbone may draw random numbers for its weights only.
    tokens = torch.arange(length * width, dtype=torch.float32).view(1, length, width).cos()
    first, other = tokens[:, :2], torch.cat([tokens[:, :2], tokens[:, 2:].neg()], 1)
    random_state = torch.get_rng_state()
    try:
        alone = backbone.encode(first)
    except Exception as error:  # any of 200 models, given what it may not expect
        raise ConfigError(f"{refusal}: {reason(error)}") from error
    if alone.shape != first.shape:
        raise ConfigError(
            f"{refusal}: its outputs have {alone.shape[-1]} numbers a token, its inputs {width}; choose"
            " a model with equal widths"
        )
    try:
        encoded = backbone.encode(torch.cat([tokens, other]))
    except Exception as error:
        raise ConfigError(
            f"{SEQ_LEN}={backbone.context}: this {kind} cannot encode {length} tokens"
            f" ({reason(error)}); choose at most {_longest(backbone, tokens)}"
        ) from error
    if not torch.equal(torch.get_rng_state(), random_state):
        raise ConfigError(f"{refusal}: it draws random numbers; choose a deterministic model")
    if not torch.allclose(encoded[0, :2], encoded[1, :2], atol=TOLERANCE):
        raise ConfigError(f"{refusal}: it is not causal; choose a causal language model")
    if not torch.allclose(encoded[0, :2], alone[0], atol=TOLERANCE):
        raise ConfigError(
            f"{refusal}: its outputs depend on how many tokens a pass has; choose another model, or a"
            f" smaller {SEQ_LEN} than {backbone.context}"
        )


def _longest(backbone: WindowBackbone, tokens: Tensor) -> int:
    """Return how many of the tokens (1, T, D) the model can encode: at least 2, fewer than T."""

    def fails(count: int) -> bool:
        try:
            backbone.encode(tokens[:, :count])
        except Exception:  # noqa: BLE001  (any of 200 models)
            return True
        return False

    return bisect_left(range(tokens.shape[1]), True, lo=3, key=fails) - 1
