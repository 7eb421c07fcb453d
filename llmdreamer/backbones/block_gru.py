"""DreamerV3's own memory of 2025, a GRU whose large layers are block-diagonal: the reference arm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor, nn

from llmdreamer.backbones.cell import CellBackbone, remember, width_of
from llmdreamer.nn.layers import MLP, BlockLinear, RMSNorm, init_linear
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import Config

BLOCKS = 8
"""Groups of the memory. The author's sizes all have as many, and layers into them of an eighth of D."""


def make_block_gru(config: Config) -> BlockGRUBackbone:
    """The memory of a configuration's width.

    Raises:
        ConfigError: if that cannot be divided by the number of blocks.
    """
    width = width_of(config)
    if width % BLOCKS:
        raise ConfigError(
            f"backbone.width={width}: backbone={config.backbone.name} has {BLOCKS} blocks of one width:"
            f" choose a multiple of {BLOCKS}"
        )
    return BlockGRUBackbone(width)


class BlockGRUBackbone(CellBackbone):
    """Groups of D / 8 numbers, each with gates of its own, that hear of each other through a narrow layer.

    Source: danijar/dreamerv3 (2025), `rssm.py:RSSM._core`, with one layer before the gates. There each
    group reads itself beside copies of three layers of D / 8 units: a summary of the memory, z, and the
    action. The same products, of each copy once, are here two plain layers: `from_summary` and the last of
    the token's. Weights are drawn as that one kernel's, of 4 D features.
    """

    uses_rssm_input = True
    input_rms = 0.149  # 2 D / 8 units after SiLU, of RMS 0.596 each, through that kernel

    def __init__(self, width: int) -> None:
        super().__init__(width)
        narrow = width // BLOCKS
        self.summary = MLP(width, narrow, 1)
        # Scaled from their own number of features to that kernel's.
        self.from_summary = init_linear(nn.Linear(narrow, width), math.sqrt(narrow / (4 * width)))
        self.from_group = BlockLinear(width, width, BLOCKS, 0.5, bias=False)
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
