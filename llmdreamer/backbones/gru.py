"""DreamerV3's kind of memory, a layer-normed GRU: the control arm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmdreamer.backbones.base import Backbone
from llmdreamer.catalogue import shape_of
from llmdreamer.nets import RMSNorm, init_linear

if TYPE_CHECKING:
    from llmdreamer.config import Config


def make_gru(config: Config) -> GRUBackbone:
    """The GRU of the width asked for, or of that which the catalogue gives to `config.size`."""
    asked = config.backbone.width
    return GRUBackbone(
        shape_of(config.backbone.name, config.size).width if asked is None else asked
    )


class GRUBackbone(Backbone):
    """A GRU cell whose gates share one RMSNorm, as in DreamerV2 and V3 (arXiv:2010.02193, appendix).

    Its state is the tensor (N, D) itself.
    """

    input_rms = 1.0
    recurrent = True
    # Not `observe`: the loop over time would be one long graph.
    compiles = frozenset({"step"})

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.from_token = init_linear(nn.Linear(width, 3 * width, bias=False))
        self.from_memory = init_linear(nn.Linear(width, 3 * width, bias=False))
        self.norm = RMSNorm(3 * width)

    def _cell(self, projected: Tensor, memory: Tensor) -> Tensor:
        gates = self.norm(projected + self.from_memory(memory))
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(torch.sigmoid(reset) * candidate)
        # The bias of -1 lets a fresh cell remember rather than overwrite.
        update = torch.sigmoid(update - 1)
        return update * candidate + (1 - update) * memory

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        projected = self.from_token(tokens)
        keep = (~is_first).to(tokens.dtype).unsqueeze(-1)
        memory = tokens.new_zeros(tokens.shape[0], self.width)
        memories = []
        # Slices are unbound once: the gradient of a single one is as large as the whole tensor.
        for token, kept in zip(projected.unbind(1), keep.unbind(1), strict=True):
            memory = self._cell(token, memory * kept)
            memories.append(memory)
        deter = torch.stack(memories, 1)
        return deter, deter

    def select(self, states: Tensor, indices: Tensor, steps: int | None = None) -> Tensor:
        index = indices.unsqueeze(-1).expand(-1, -1, self.width)
        return states.detach().gather(1, index).flatten(0, 1)

    def initial(self, streams: int) -> Tensor:
        return self.from_token.weight.new_zeros(streams, self.width)

    def step(self, token: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        memory = self._cell(self.from_token(token), state)
        return memory, memory

    def stack(self, states: list[Tensor]) -> Tensor:
        return torch.stack(states, 1)

    def reset(self, state: Tensor, mask: Tensor) -> Tensor:
        return state.masked_fill(mask.unsqueeze(-1), 0.0)

    def replace(self, state: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.unsqueeze(-1), other, state)

    def state_dict_of(self, state: Tensor) -> dict[str, Tensor]:
        return {"memory": state}

    def state_from_dict(self, tensors: dict[str, Tensor]) -> Tensor:
        return tensors["memory"]
