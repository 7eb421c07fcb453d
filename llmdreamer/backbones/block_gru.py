"""DreamerV3's own memory of 2025, a GRU whose large layers are block-diagonal: the reference arm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from llmdreamer.backbones.cell import CellBackbone, remember
from llmdreamer.catalogue import shape_of
from llmdreamer.errors import ConfigError
from llmdreamer.nets import MLP, BlockLinear, RMSNorm, init_linear

if TYPE_CHECKING:
    from llmdreamer.config import Config

BLOCKS = 8
"""Groups of the memory. The author's sizes all have as many, and layers into them of an eighth of D."""

SCALE = 1.187
"""1 / sqrt(2 E[silu(x)²]) of normal x, for what is added to a token.

There the same kernel reads two layers of D / 8 units in the token's place. Scaled so, summary and group weigh
against a token of RMS 1 what they weigh there.
"""


def make_block_gru(config: Config) -> BlockGRUBackbone:
    """The memory of the width asked for, or of that which the catalogue gives to `config.size`.

    Raises:
        ConfigError: if that cannot be divided by the number of blocks.
    """
    asked = config.backbone.width
    width = shape_of(config.backbone.name, config.size).width if asked is None else asked
    if width % BLOCKS:
        raise ConfigError(
            f"backbone.width={width}: backbone={config.backbone.name} has {BLOCKS} blocks of one width:"
            f" choose a multiple of {BLOCKS}"
        )
    return BlockGRUBackbone(width)


class BlockGRUBackbone(CellBackbone):
    """Groups of D / 8 numbers, each with gates of its own, that hear of each other through a narrow layer.

    Source: danijar/dreamerv3 (2025), `rssm.py:RSSM._core`, with one layer before the gates. There each
    group reads itself beside copies of one summary: the same products, of the summary once, are here a
    plain layer. What is there a layer of z and one of the action is here the token, which is their sum.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width)
        narrow = width // BLOCKS
        self.summary = MLP(width, narrow, 1)
        self.from_summary = init_linear(nn.Linear(narrow, width), SCALE)
        # Of its D features a group reads an eighth, which is what its weights are to be scaled to.
        self.from_group = BlockLinear(width, width, BLOCKS, SCALE * math.sqrt(BLOCKS), bias=False)
        self.norm = RMSNorm(width)
        self.gates = BlockLinear(width, 3 * width, BLOCKS)

    def project(self, tokens: Tensor) -> Tensor:
        return tokens

    def cell(self, projected: Tensor, memory: Tensor) -> Tensor:
        shared = self.from_summary(self.summary(memory))
        hidden = nn.functional.silu(self.norm(projected + shared + self.from_group(memory)))
        groups = self.gates(hidden).to(memory.dtype).unflatten(-1, (BLOCKS, -1))
        reset, candidate, update = (gate.flatten(-2) for gate in groups.chunk(3, -1))
        return remember(reset, candidate, update, memory)
