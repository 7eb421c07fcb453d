"""Recurrent backbones whose memory of a stream is one vector, which is `deter` itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmdreamer.backbones.base import Backbone
from llmdreamer.config.catalog import shape_of

if TYPE_CHECKING:
    from llmdreamer.config import Config


def width_of(config: Config) -> int:
    """D: the width asked for, or that which the catalogue gives to `config.size`."""
    asked = config.backbone.width
    return shape_of(config.backbone.name, config.size).width if asked is None else asked


def remember(reset: Tensor, candidate: Tensor, update: Tensor, memory: Tensor) -> Tensor:
    """A GRU's new memory, from its old one and the logits of its gates, all (N, D)."""
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    # The bias of -1 lets a fresh cell remember rather than overwrite.
    update = torch.sigmoid(update - 1)
    return update * candidate + (1 - update) * memory


class CellBackbone(Backbone):
    """A cell that is called once a token. Its cache is the tensor (N, D)."""

    input_rms = 1.0
    recurrent = True
    # Not `observe`: the loop over time would be one long graph.
    compiles = frozenset({"step"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """What of the cell does not wait for its memory, so that it is computed of all tokens at once."""

    @abstractmethod
    def cell(self, projected: Tensor, memory: Tensor) -> Tensor:
        """The memory (N, D) after a token, given what `project` made of it."""

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        projected = self.project(tokens)
        keep = (~is_first).to(tokens.dtype).unsqueeze(-1)
        memory = tokens.new_zeros(tokens.shape[0], self.width)
        memories = []
        # Slices are unbound once: the gradient of a single one is as large as the whole tensor.
        for token, kept in zip(projected.unbind(1), keep.unbind(1), strict=True):
            memory = self.cell(token, memory * kept)
            memories.append(memory)
        deter = torch.stack(memories, 1)
        return deter, deter

    def select(self, caches: Tensor, indices: Tensor, steps: int | None = None) -> Tensor:
        index = indices.unsqueeze(-1).expand(-1, -1, self.width)
        return caches.detach().gather(1, index).flatten(0, 1)

    def initial_cache(self, streams: int) -> Tensor:
        return next(self.parameters()).new_zeros(streams, self.width)

    def step(self, token: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.cell(self.project(token), cache)
        return memory, memory

    def stack(self, caches: list[Tensor]) -> Tensor:
        return torch.stack(caches, 1)

    def reset(self, cache: Tensor, mask: Tensor) -> Tensor:
        return cache.masked_fill(mask.unsqueeze(-1), 0.0)

    def replace(self, cache: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.unsqueeze(-1), other, cache)

    def cache_to_dict(self, cache: Tensor) -> dict[str, Tensor]:
        return {"memory": cache}

    def cache_from_dict(self, tensors: dict[str, Tensor]) -> Tensor:
        return tensors["memory"]
