"""Any Hugging Face causal attention model as a backbone: a masked pass to train, cached steps to act."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from llmdreamer.backbones import branches
from llmdreamer.backbones.base import Backbone
from llmdreamer.backbones.branches import Branches, branch_off
from llmdreamer.config.catalog import DEAF, LEARNED, ROTARY
from llmdreamer.utils.errors import ConfigError

WORTH_SHARING = 3 * 2**20
"""Bytes of a layer's keys and values, of all dreams, from which a past in common is faster than copies."""


def is_known(config: PreTrainedConfig) -> bool:
    """Whether a model may be trusted to take a mask, positions and a cache of ours at their word."""
    return config.model_type in ROTARY | LEARNED and not _rotation_depends_on_length(config)


def make_attention(model: PreTrainedModel, context: int, input_rms: float) -> AttentionBackbone:
    """The backbone of a known architecture.

    Raises:
        ConfigError: if the context is longer than the model can look back.
    """
    config = model.config
    learned = int(config.n_positions) if config.model_type in LEARNED else None
    if learned is not None and context > learned:
        raise ConfigError(
            f"algo.world_model.hf_model.seq_len={context}: this GPT-2 has {learned} positions"
        )
    # Our mask replaces the model's own, the one of its sliding layers too.
    window = getattr(config, "sliding_window", None)
    if window is not None and context > window:
        raise ConfigError(
            f"algo.world_model.hf_model.seq_len={context}: this {config.model_type} looks back"
            f" {window} tokens"
        )
    return AttentionBackbone(model, context, input_rms, learned)


def _rotation_depends_on_length(config: PreTrainedConfig) -> bool:
    """Whether the model turns all positions by another angle once one of them is large.

    Then a step would not compute what training computed. Windows encoded anew stay below that.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *[part for part in rope.values() if isinstance(part, dict)]]
    return any(part.get("rope_type") in {"dynamic", "longrope"} for part in kinds)


@dataclass(frozen=True)
class Encoded:
    """What `observe` leaves behind for `select`: every layer's keys and values of whole sequences."""

    layers: list[tuple[Tensor, Tensor]]  # each (B, heads, T, d)
    start: Tensor  # (B, T), the first row that each row's episode has in the sequence
    position: Tensor  # (B, T), of each token, not yet wrapped


@dataclass(frozen=True)
class Window:
    """The last tokens of N streams, in a ring of `context` columns that `step` writes in place.

    Attention does not care for the order of its keys, since their positions are part of them: the
    newest token overwrites the oldest, and nothing is ever moved.
    """

    layers: list[tuple[Tensor, Tensor]]  # each (N, heads, context, d); empty before the first token
    visible: Tensor  # (N, context), bool: whether the column holds a token of this episode
    position: Tensor  # (N,), of the next token
    slot: Tensor  # (1,), int64, the column of the next token; as a number, each would be compiled anew


class RingLayer(DynamicLayer):
    """One layer's cache over a ring: a single new token replaces one column."""

    def __init__(self, columns: int, slot: Tensor, cached: tuple[Tensor, Tensor] | None) -> None:
        super().__init__()
        self.columns = columns
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
            keys = key_states.new_zeros(streams, heads, self.columns, size)
            values = torch.zeros_like(keys)
            self.keys, self.values, self.is_initialized = keys, values, True
        keys.index_copy_(2, self.slot, key_states.to(keys.dtype))
        values.index_copy_(2, self.slot, value_states.to(values.dtype))
        return keys, values


class AttentionBackbone(Backbone):
    """Attention over the last `context` tokens of the episode, in training and in acting alike.

    Positions count from the episode's start. A model with learned positions has only so many: there
    they wrap around, which keeps every token of a window apart as long as the window is not longer
    than the table; and in training each sequence starts at a random position, so that none is left
    untrained however long the episodes are that the policy later lives through.
    """

    compiles = frozenset({"observe", "step"})

    def __init__(
        self, model: PreTrainedModel, context: int, input_rms: float, learned_positions: int | None
    ) -> None:
        super().__init__()
        self.model = model
        self.width = int(model.config.hidden_size)
        self.context = context
        self.input_rms = input_rms
        self.learned_positions = learned_positions
        if model.config.model_type not in DEAF:
            model.set_attn_implementation(branches.NAME)
        self.shares = model.config._attn_implementation == branches.NAME
        # transformers 5.24 renamed it, warns of the old name, and drops it in 5.40.
        named = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in named else "past_key_values"

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, Encoded]:
        batch, time = is_first.shape
        row = torch.arange(time, device=tokens.device)
        start = torch.where(is_first, row, 0).cummax(1).values
        position = row - start
        if self.training and self.learned_positions is not None:
            phase = torch.randint(self.learned_positions, (batch, 1), device=tokens.device)
            position = position + phase
        # A query sees the keys of its own episode that are at most context - 1 steps old.
        age = row.unsqueeze(1) - row
        visible = (age >= 0) & (age < self.context) & (row >= start.unsqueeze(-1))
        kv_cache = DynamicCache()
        deter = self._forward(tokens, visible.unsqueeze(1), position, kv_cache)
        return deter, Encoded(_layers(kv_cache), start, position)

    def select(
        self, caches: Encoded, indices: Tensor, steps: int | None = None
    ) -> Window | Branches:
        if steps is not None and self._pays_to_share(caches, indices, steps):
            return branch_off(
                caches.layers, caches.start, caches.position, indices, self.context, steps
            )
        # Column c holds the token that is context - 1 - c steps older than the start; the ring's
        # first column, too old for the next token to see, is the one it will overwrite.
        age = torch.arange(self.context - 1, -1, -1, device=indices.device)
        column = indices.unsqueeze(-1) - age
        row = torch.arange(indices.shape[0], device=indices.device).unsqueeze(1)
        visible = column >= caches.start[row, indices].unsqueeze(-1)
        column = column.clamp(min=0).unsqueeze(2)

        def gather(cached: Tensor) -> Tensor:
            head = torch.arange(cached.shape[1], device=cached.device).unsqueeze(-1)
            return cached.detach()[row[..., None, None], head, column].flatten(0, 1)

        layers = [(gather(keys), gather(values)) for keys, values in caches.layers]
        position = caches.position[row, indices] + 1
        first = torch.zeros(1, dtype=torch.int64, device=indices.device)
        return Window(layers, visible.flatten(0, 1), position.flatten(), first)

    def initial_cache(self, streams: int) -> Window:
        device = next(self.model.parameters()).device
        return Window(
            [],
            torch.zeros(streams, self.context, dtype=torch.bool, device=device),
            torch.zeros(streams, dtype=torch.int64, device=device),
            torch.zeros(1, dtype=torch.int64, device=device),
        )

    @torch.no_grad()
    def step(self, token: Tensor, cache: Window | Branches) -> tuple[Tensor, Window | Branches]:
        if isinstance(cache, Branches):
            return self._step_branches(token, cache)
        visible = cache.visible.index_fill(1, cache.slot, True)
        cached: Sequence[tuple[Tensor, Tensor] | None] = cache.layers
        if not cached:
            cached = [None] * self.model.config.num_hidden_layers
        kv_cache = Cache(layers=[RingLayer(self.context, cache.slot, pair) for pair in cached])
        deter = self._forward(
            token.unsqueeze(1), visible[:, None, None], cache.position.unsqueeze(1), kv_cache
        )
        slot = (cache.slot + 1) % self.context
        return deter.squeeze(1), Window(_layers(kv_cache), visible, cache.position + 1, slot)

    def reset(self, cache: Window, mask: Tensor) -> Window:
        return Window(
            cache.layers,
            cache.visible & ~mask.unsqueeze(-1),
            cache.position.masked_fill(mask, 0),
            cache.slot,
        )

    def replace(self, cache: Window, other: Window, mask: Tensor) -> Window:
        # The other's ring is turned until its next column is ours.
        column = torch.arange(self.context, device=mask.device)
        turned = (column + other.slot - cache.slot) % self.context

        def chosen(ours: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(mask[:, None, None, None], theirs[:, :, turned], ours)

        nothing = [
            (torch.zeros_like(k), torch.zeros_like(v)) for k, v in cache.layers or other.layers
        ]
        layers = zip(cache.layers or nothing, other.layers or nothing, strict=True)
        return Window(
            [(chosen(a, c), chosen(b, d)) for (a, b), (c, d) in layers],
            torch.where(mask.unsqueeze(-1), other.visible[:, turned], cache.visible),
            torch.where(mask, other.position, cache.position),
            cache.slot,
        )

    def cache_to_dict(self, cache: Window) -> dict[str, Tensor]:
        tensors = {"visible": cache.visible, "position": cache.position, "slot": cache.slot}
        for index, (keys, values) in enumerate(cache.layers):
            tensors |= {f"keys.{index}": keys, f"values.{index}": values}
        return tensors

    def cache_from_dict(self, tensors: dict[str, Tensor]) -> Window:
        count = sum(name.startswith("keys.") for name in tensors)
        layers = [(tensors[f"keys.{i}"], tensors[f"values.{i}"]) for i in range(count)]
        slot = tensors["slot"].view(1)  # without dimension in checkpoints from before
        return Window(layers, tensors["visible"], tensors["position"], slot)

    def _step_branches(self, token: Tensor, cache: Branches) -> tuple[Tensor, Branches]:
        columns = cache.own[0][0].shape[2]
        kv_cache = Cache(layers=[RingLayer(columns, cache.slot, pair) for pair in cache.own])
        deter = self._forward(
            token.unsqueeze(1),
            cache.bias()[:, None, None],
            cache.position.unsqueeze(1),
            kv_cache,
            past=cache.past,
        )
        own, position, slot = _layers(kv_cache), cache.position + 1, cache.slot + 1
        return deter.squeeze(1), replace(cache, own=own, position=position, slot=slot)

    def _pays_to_share(self, caches: Encoded, indices: Tensor, steps: int) -> bool:
        """Whether dreams had better share their past than have a copy of it each.

        A copy is read faster while it fits into a processor's cache; and where a dream is about as long as
        the context, most of what it reads is its own in either way. Measured: benchmarks/branches.py.
        """
        keys, values = caches.layers[0]
        a_row = (keys[:, :, 0].numel() + values[:, :, 0].numel()) * keys.element_size()
        copied = a_row * indices.shape[1] * self.context
        return self.shares and self.context >= 2 * steps and copied >= WORTH_SHARING

    def _forward(
        self, tokens: Tensor, visible: Tensor, position: Tensor, kv_cache: Cache, **attending: Any
    ) -> Tensor:
        """Run the model under an explicit mask: (N, Q, D) tokens, (N, 1, Q, keys) visible."""
        if self.learned_positions is not None:
            position = position % self.learned_positions
        # A 4D mask is taken as it is, together with explicit positions; every default of the
        # library (2D mask, positions counted from the cache) would let episodes see each other.
        output = self.model(
            inputs_embeds=tokens,
            attention_mask=visible,
            position_ids=position,
            use_cache=True,
            **{self._cache_name: kv_cache},
            **attending,
        )
        deter: Tensor = output.last_hidden_state
        return deter


def _layers(kv_cache: Cache) -> list[tuple[Tensor, Tensor]]:
    layers = []
    for layer in kv_cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None and layer.values is not None
        layers.append((layer.keys, layer.values))
    return layers
