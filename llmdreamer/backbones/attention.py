"""Hugging Face attention models as backbones: one masked pass for sequences, cached steps after that."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache as TransformersCache
from transformers.cache_utils import DynamicCache, DynamicLayer

from llmdreamer.backbones import shared_prefix
from llmdreamer.backbones.hf_backbone import HuggingFaceBackbone
from llmdreamer.backbones.rotation import constant_rotation_limit
from llmdreamer.backbones.shared_prefix import SharedPrefixCache, share_prefix
from llmdreamer.config.catalog import IGNORES_ATTENTION_KWARGS, LEARNED_POSITIONS, ROTARY_POSITIONS
from llmdreamer.utils.errors import ConfigError

SHARED_PREFIX_MIN_BYTES = 3 * 2**20
"""Size of one layer's copied keys and values from which a shared prefix is faster than copies."""


def supports_explicit_mask(config: PreTrainedConfig) -> bool:
    """Return True if the model is known to use a given 4D mask, position ids and cache as they are.

    Positions grow with the episode. So the angles of a rotation may not depend on the largest position:
    cached steps would differ from the training pass.
    """
    known = config.model_type in ROTARY_POSITIONS | LEARNED_POSITIONS
    return known and constant_rotation_limit(config) is None


def make_attention(model: PreTrainedModel, context: int, input_rms: float) -> AttentionBackbone:
    """Return the backbone of a model for which `supports_explicit_mask` is True.

    Raises:
        ConfigError: if the context is longer than the model can look back.
    """
    config = model.config
    learned = int(config.n_positions) if config.model_type in LEARNED_POSITIONS else None
    if learned is not None and context > learned:
        raise ConfigError(
            f"algo.world_model.hf_model.seq_len={context}: this GPT-2 has {learned} positions;"
            f" choose at most {learned}"
        )
    # Our mask replaces the model's own, also in layers with a sliding window.
    window = getattr(config, "sliding_window", None)
    if window is not None and context > window:
        raise ConfigError(
            f"algo.world_model.hf_model.seq_len={context}: this {config.model_type} looks back"
            f" {window} tokens; choose at most {window}"
        )
    return AttentionBackbone(model, context, input_rms, learned)


@dataclass(frozen=True)
class SequenceKVCache:
    """Keys and values of whole sequences in every layer, as `observe` returns them for `select`."""

    layers: list[tuple[Tensor, Tensor]]  # each (B, heads, T, d)
    episode_start: Tensor  # (B, T), the index of the first token of each token's episode
    position: Tensor  # (B, T), of each token, before it wraps around


@dataclass(frozen=True)
class RingKVCache:
    """Keys and values of the last tokens of N streams, in a ring of `context` slots.

    `step` writes into the slots in place. Keys contain their positions, so the order of the slots does
    not matter: the newest token overwrites the oldest, and nothing is moved.
    """

    layers: list[tuple[Tensor, Tensor]]  # each (N, heads, context, d); empty before the first token
    visible: Tensor  # (N, context), bool: true if the slot holds a token of the current episode
    position: Tensor  # (N,), of the next token
    slot: (
        Tensor  # (1,), int64, of the next token; a Python int would recompile `step` for each value
    )


class RingCacheLayer(DynamicLayer):
    """One layer's cache for transformers: the single new token overwrites one slot."""

    def __init__(self, slots: int, slot: Tensor, cached: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.slots = slots
        self.slot = slot
        if cached is not None:
            self.keys, self.values = cached
            self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        keys, values = self.keys, self.values
        if keys is None or values is None:
            streams, heads, _, size = key_states.shape
            keys = key_states.new_zeros(streams, heads, self.slots, size)
            values = torch.zeros_like(keys)
            self.keys, self.values, self.is_initialized = keys, values, True
        keys.index_copy_(2, self.slot, key_states.to(keys.dtype))
        values.index_copy_(2, self.slot, value_states.to(values.dtype))
        return keys, values


class AttentionBackbone(HuggingFaceBackbone):
    """Attention over the last `context` tokens of the episode, in training and in acting.

    Positions count from the start of the episode. Learned positions wrap around at the end of their
    table, so episodes may be longer than the table; the context may not. In training each sequence
    starts at a random learned position, so that every position is trained.
    """

    compiles = frozenset({"observe", "step"})

    def __init__(
        self, model: PreTrainedModel, context: int, input_rms: float, learned_positions: int | None
    ) -> None:
        super().__init__(model, input_rms)
        self.context = context
        self.learned_positions = learned_positions
        if model.config.model_type not in IGNORES_ATTENTION_KWARGS:
            model.set_attn_implementation(shared_prefix.ATTENTION_NAME)
        self.can_share_prefix = model.config._attn_implementation == shared_prefix.ATTENTION_NAME
        # transformers 5.24 renamed the argument, warns about the old name, and drops it in 5.40.
        parameters = inspect.signature(model.forward).parameters
        self._cache_argument = "cache" if "cache" in parameters else "past_key_values"

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, SequenceKVCache]:
        batch, length = is_first.shape
        time = torch.arange(length, device=tokens.device)
        episode_start = torch.where(is_first, time, 0).cummax(1).values
        position = time - episode_start
        if self.training and self.learned_positions is not None:
            offset = torch.randint(self.learned_positions, (batch, 1), device=tokens.device)
            position = position + offset
        # A query sees the keys of its own episode that are at most context - 1 steps old.
        age = time.unsqueeze(1) - time
        visible = (age >= 0) & (age < self.context) & (time >= episode_start.unsqueeze(-1))
        kv_cache = DynamicCache()
        deter = self._forward(tokens, visible.unsqueeze(1), position, kv_cache)
        return deter, SequenceKVCache(_keys_and_values(kv_cache), episode_start, position)

    def select(
        self, caches: SequenceKVCache, indices: Tensor, steps: int | None = None
    ) -> RingKVCache | SharedPrefixCache:
        if steps is not None and self._should_share_prefix(caches, indices, steps):
            return share_prefix(
                caches.layers, caches.episode_start, caches.position, indices, self.context, steps
            )
        # Slot s holds the token that is context - 1 - s steps older than the selected one. The next
        # token overwrites slot 0, which is too old for it to see.
        age = torch.arange(self.context - 1, -1, -1, device=indices.device)
        time = indices.unsqueeze(-1) - age
        batch = torch.arange(indices.shape[0], device=indices.device).unsqueeze(1)
        visible = time >= caches.episode_start[batch, indices].unsqueeze(-1)
        time = time.clamp(min=0).unsqueeze(2)

        def gather(cached: Tensor) -> Tensor:
            head = torch.arange(cached.shape[1], device=cached.device).unsqueeze(-1)
            return cached.detach()[batch[..., None, None], head, time].flatten(0, 1)

        layers = [(gather(keys), gather(values)) for keys, values in caches.layers]
        position = caches.position[batch, indices] + 1
        slot = torch.zeros(1, dtype=torch.int64, device=indices.device)
        return RingKVCache(layers, visible.flatten(0, 1), position.flatten(), slot)

    def initial_cache(self, streams: int) -> RingKVCache:
        device = next(self.model.parameters()).device
        return RingKVCache(
            [],
            torch.zeros(streams, self.context, dtype=torch.bool, device=device),
            torch.zeros(streams, dtype=torch.int64, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def step(
        self, token: Tensor, cache: RingKVCache | SharedPrefixCache
    ) -> tuple[Tensor, RingKVCache | SharedPrefixCache]:
        if isinstance(cache, SharedPrefixCache):
            return self._step_shared_prefix(token, cache)
        visible = cache.visible.index_fill(1, cache.slot, True)
        cached: Sequence[tuple[Tensor, Tensor] | None] = cache.layers
        if not cached:
            cached = [None] * self.model.config.num_hidden_layers
        kv_cache = TransformersCache(
            layers=[RingCacheLayer(self.context, cache.slot, pair) for pair in cached]
        )
        deter = self._forward(
            token.unsqueeze(1), visible[:, None, None], cache.position.unsqueeze(1), kv_cache
        )
        slot = (cache.slot + 1) % self.context
        layers = _keys_and_values(kv_cache)
        return deter.squeeze(1), RingKVCache(layers, visible, cache.position + 1, slot)

    def reset(self, cache: RingKVCache, mask: Tensor) -> RingKVCache:
        return RingKVCache(
            cache.layers,
            cache.visible & ~mask.unsqueeze(-1),
            cache.position.masked_fill(mask, 0),
            cache.slot,
        )

    def replace(self, cache: RingKVCache, other: RingKVCache, mask: Tensor) -> RingKVCache:
        # Rotate the other ring until its next slot is at the place of ours.
        slots = torch.arange(self.context, device=mask.device)
        rotated = (slots + other.slot - cache.slot) % self.context

        def merge(ours: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(mask[:, None, None, None], theirs[:, :, rotated], ours)

        empty = [
            (torch.zeros_like(k), torch.zeros_like(v)) for k, v in cache.layers or other.layers
        ]
        layers = zip(cache.layers or empty, other.layers or empty, strict=True)
        return RingKVCache(
            [(merge(a, c), merge(b, d)) for (a, b), (c, d) in layers],
            torch.where(mask.unsqueeze(-1), other.visible[:, rotated], cache.visible),
            torch.where(mask, other.position, cache.position),
            cache.slot,
        )

    def cache_to_dict(self, cache: RingKVCache) -> dict[str, Tensor]:
        tensors = {"visible": cache.visible, "position": cache.position, "slot": cache.slot}
        for index, (keys, values) in enumerate(cache.layers):
            tensors |= {f"keys.{index}": keys, f"values.{index}": values}
        return tensors

    def cache_from_dict(self, tensors: dict[str, Tensor]) -> RingKVCache:
        count = sum(name.startswith("keys.") for name in tensors)
        layers = [(tensors[f"keys.{i}"], tensors[f"values.{i}"]) for i in range(count)]
        return RingKVCache(layers, tensors["visible"], tensors["position"], tensors["slot"])

    def _step_shared_prefix(
        self, token: Tensor, cache: SharedPrefixCache
    ) -> tuple[Tensor, SharedPrefixCache]:
        slots = cache.suffix[0][0].shape[2]
        kv_cache = TransformersCache(
            layers=[RingCacheLayer(slots, cache.slot, pair) for pair in cache.suffix]
        )
        deter = self._forward(
            token.unsqueeze(1),
            cache.bias()[:, None, None],
            cache.position.unsqueeze(1),
            kv_cache,
            prefix=cache.prefix,
        )
        suffix, position, slot = _keys_and_values(kv_cache), cache.position + 1, cache.slot + 1
        return deter.squeeze(1), replace(cache, suffix=suffix, position=position, slot=slot)

    def _should_share_prefix(self, caches: SequenceKVCache, indices: Tensor, steps: int) -> bool:
        """Return True if sharing the prefix between streams is faster than copying it for each stream.

        Copies are faster while they fit into the processor's cache. They are also faster if a stream
        becomes about as long as the context: most of what it reads is then its own in both cases.
        Measured by benchmarks/branches.py.
        """
        keys, values = caches.layers[0]
        bytes_per_token = (keys[:, :, 0].numel() + values[:, :, 0].numel()) * keys.element_size()
        copied = bytes_per_token * indices.shape[1] * self.context
        long_context = self.context >= 2 * steps
        return self.can_share_prefix and long_context and copied >= SHARED_PREFIX_MIN_BYTES

    def _forward(
        self,
        tokens: Tensor,
        visible: Tensor,
        position: Tensor,
        kv_cache: TransformersCache,
        **attention_kwargs: Any,
    ) -> Tensor:
        """Run the model with an explicit mask: tokens (N, Q, D), visible (N, 1, Q, keys)."""
        if self.learned_positions is not None:
            position = position % self.learned_positions
        # transformers uses a 4D mask with explicit positions as it is. With its defaults (2D mask,
        # positions counted from the cache) episodes would see each other.
        return self._encode(
            tokens,
            attention_mask=visible,
            position_ids=position,
            use_cache=True,
            **{self._cache_argument: kv_cache},
            **attention_kwargs,
        )


def _keys_and_values(kv_cache: TransformersCache) -> list[tuple[Tensor, Tensor]]:
    layers = []
    for layer in kv_cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None and layer.values is not None
        layers.append((layer.keys, layer.values))
    return layers
