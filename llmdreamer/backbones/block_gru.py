"""DreamerV3's recurrent model of 2025, a GRU whose large layers are block-diagonal: the reference arm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from llmdreamer.backbones.cell import CellBackbone, backbone_width, gru_update
from llmdreamer.nn.layers import MLP, BlockLinear, RMSNorm, init_linear
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import Config

BLOCKS = 8
"""Blocks of `deter`. All sizes of the author's code have 8, with input layers of D / 8 units."""


def make_block_gru(config: Config) -> BlockGRUBackbone:
    """Return the block GRU of the configured width.

    Raises:
        ConfigError: if the width is not a multiple of the number of blocks.
    """
    width = backbone_width(config)
    if width % BLOCKS:
        raise ConfigError(
            f"backbone.width={width}: backbone={config.backbone.name} has {BLOCKS} blocks of equal width;"
            f" choose a multiple of {BLOCKS}"
        )
    return BlockGRUBackbone(width)


class BlockGRUBackbone(CellBackbone):
    """Blocks of D / 8 numbers with their own gates, connected through one narrow layer.

    Source: danijar/dreamerv3 (2025), `rssm.py:RSSM._core`, with one layer before the gates. There each
    block reads itself and copies of three layers of D / 8 units: a summary of `deter`, z, and the
    action. Here each product is computed once instead of once for each copy, by two plain layers:
    `from_summary`, and the last layer of the token. Initial weights have the scale of the original
    kernel, which has 4 D input features.
    """

    uses_rssm_input = True
    input_rms = 0.149  # 2 D / 8 units after SiLU, of RMS 0.596 each, through the original kernel

    def __init__(self, width: int) -> None:
        super().__init__(width)
        narrow = width // BLOCKS
        self.summary = MLP(width, narrow, 1)
        # From the scale for `narrow` input features to that for the original kernel's 4 D.
        self.from_summary = init_linear(nn.Linear(narrow, width), math.sqrt(narrow / (4 * width)))
        self.from_block = BlockLinear(width, width, BLOCKS, 0.5, bias=False)
        self.norm = RMSNorm(width)
        self.gates = BlockLinear(width, 3 * width, BLOCKS)

    def project(self, tokens: Tensor) -> Tensor:
        return tokens

    def cell(self, projected: Tensor, deter: Tensor) -> Tensor:
        from_summary = self.from_summary(self.summary(deter))
        hidden = nn.functional.silu(self.norm(projected + from_summary + self.from_block(deter)))
        blocks = self.gates(hidden).to(deter.dtype).unflatten(-1, (BLOCKS, -1))
        reset, candidate, update = (gate.flatten(-2) for gate in blocks.chunk(3, -1))
        return gru_update(reset, candidate, update, deter)
