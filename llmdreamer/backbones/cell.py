"""Recurrent backbones whose cache is one vector for each stream: `deter` itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmdreamer.backbones.base import Backbone
from llmdreamer.config.catalog import shape_of

if TYPE_CHECKING:
    from llmdreamer.config import Config


def backbone_width(config: Config) -> int:
    """Return D: `backbone.width` if it is set, else the catalog's width for `config.size`."""
    width = config.backbone.width
    return shape_of(config.backbone.name, config.size).width if width is None else width


def gru_update(reset: Tensor, candidate: Tensor, update: Tensor, deter: Tensor) -> Tensor:
    """Return a GRU's next `deter` from the current one and the logits of the gates, all (N, D)."""
    candidate = torch.tanh(torch.sigmoid(reset) * candidate)
    # With the bias of -1 an untrained cell keeps more of its value than it overwrites.
    update = torch.sigmoid(update - 1)
    return update * candidate + (1 - update) * deter


class CellBackbone(Backbone):
    """A cell that is called once for each token. Its cache is `deter` (N, D)."""

    input_rms = 1.0
    recurrent = True
    # Not `observe`: its loop over time would become one long graph.
    compiles = frozenset({"step"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Compute the part of the cell that does not depend on `deter`, for all tokens at once."""

    @abstractmethod
    def cell(self, projected: Tensor, deter: Tensor) -> Tensor:
        """Return the next `deter` (N, D), given the current one and the output of `project`."""

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        projected = self.project(tokens)
        keep = (~is_first).to(tokens.dtype).unsqueeze(-1)
        deter = tokens.new_zeros(tokens.shape[0], self.width)
        outputs = []
        # Unbind once: the gradient of a single slice is as large as the whole tensor.
        for token, kept in zip(projected.unbind(1), keep.unbind(1), strict=True):
            deter = self.cell(token, deter * kept)
            outputs.append(deter)
        stacked = torch.stack(outputs, 1)
        return stacked, stacked

    def select(self, caches: Tensor, indices: Tensor, steps: int | None = None) -> Tensor:
        index = indices.unsqueeze(-1).expand(-1, -1, self.width)
        return caches.detach().gather(1, index).flatten(0, 1)

    def initial_cache(self, streams: int) -> Tensor:
        return next(self.parameters()).new_zeros(streams, self.width)

    def step(self, token: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        deter = self.cell(self.project(token), cache)
        return deter, deter

    def stack(self, caches: list[Tensor]) -> Tensor:
        return torch.stack(caches, 1)

    def reset(self, cache: Tensor, mask: Tensor) -> Tensor:
        return cache.masked_fill(mask.unsqueeze(-1), 0.0)

    def replace(self, cache: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.unsqueeze(-1), other, cache)

    def cache_to_dict(self, cache: Tensor) -> dict[str, Tensor]:
        return {"deter": cache}

    def cache_from_dict(self, tensors: dict[str, Tensor]) -> Tensor:
        return tensors["deter"]
