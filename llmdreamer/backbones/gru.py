"""GRU with layer normalization, as in DreamerV2 and DreamerV3's first version: the control arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from llmdreamer.backbones.cell import CellBackbone, backbone_width, gru_update
from llmdreamer.nn.layers import RMSNorm, init_linear

if TYPE_CHECKING:
    from llmdreamer.config import Config


def make_gru(config: Config) -> GRUBackbone:
    """Return the GRU of the configured width."""
    return GRUBackbone(backbone_width(config))


class GRUBackbone(CellBackbone):
    """A GRU cell whose gates share one RMSNorm, as in DreamerV2 and V3 (arXiv:2010.02193, appendix)."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.from_token = init_linear(nn.Linear(width, 3 * width, bias=False))
        self.from_deter = init_linear(nn.Linear(width, 3 * width, bias=False))
        self.norm = RMSNorm(3 * width)

    def project(self, tokens: Tensor) -> Tensor:
        projected: Tensor = self.from_token(tokens)
        return projected

    def cell(self, projected: Tensor, deter: Tensor) -> Tensor:
        gates = self.norm(projected + self.from_deter(deter))
        reset, candidate, update = gates.chunk(3, -1)
        return gru_update(reset, candidate, update, deter)
