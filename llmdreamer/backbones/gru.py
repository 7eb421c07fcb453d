"""A layer-normed GRU, as DreamerV2 and the first V3 have it: the control arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from llmdreamer.backbones.cell import CellBackbone, remember, width_of
from llmdreamer.nn.layers import RMSNorm, init_linear

if TYPE_CHECKING:
    from llmdreamer.config import Config


def make_gru(config: Config) -> GRUBackbone:
    """The GRU of a configuration's width."""
    return GRUBackbone(width_of(config))


class GRUBackbone(CellBackbone):
    """A GRU cell whose gates share one RMSNorm, as in DreamerV2 and V3 (arXiv:2010.02193, appendix)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.from_token = init_linear(nn.Linear(width, 3 * width, bias=False))
        self.from_memory = init_linear(nn.Linear(width, 3 * width, bias=False))
        self.norm = RMSNorm(3 * width)

    def project(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.from_token(tokens)
        return projected

    def cell(self, projected: Tensor, memory: Tensor) -> Tensor:
        gates = self.norm(projected + self.from_memory(memory))
        reset, candidate, update = gates.chunk(3, -1)
        return remember(reset, candidate, update, memory)
