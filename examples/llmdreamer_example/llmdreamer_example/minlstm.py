"""minLSTM (arXiv:2410.01201, "Were RNNs all we needed?") as a world model's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmdreamer.backbones import Backbone
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import Config


def make(config: Config, width: int, layers: int) -> MinLSTM:
    """What `backbone.factory` names; `width` and `layers` are `backbone.options`."""
    if min(width, layers) < 1:
        raise ConfigError(f"backbone.options={{width:{width},layers:{layers}}}: both must be >= 1")
    return MinLSTM(width, layers)


class Layer(nn.Module):
    """x + out(memory), with memory = f' * (memory before) + i' * candidate and f' + i' = 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, 1e-4)
        self.gates = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)

    def weigh(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., D) -> how much of the memory before is kept, and what is added to it."""
        forget, write, candidate = self.gates(self.norm(x)).float().chunk(3, -1)
        # sigmoid(f) / (sigmoid(f) + sigmoid(i)), without a quotient of small numbers.
        keep = torch.sigmoid(nn.functional.logsigmoid(forget) - nn.functional.logsigmoid(write))
        return keep, (1 - keep) * candidate

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        mixed: Tensor = x + self.out(memory)
        return mixed


class MinLSTM(Backbone):
    """Layers of minLSTM. Gates do not see the memory, so all of a sequence's are computed at once.

    Its cache is the memory of all layers, (N, layers, D).
    """

    input_rms = 1.0
    recurrent = True

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        x, memories = tokens, []
        for layer in self.layers:
            keep, added = layer.weigh(x)
            keep = keep * ~is_first.unsqueeze(-1)
            steps: list[Tensor] = []
            for kept, new in zip(keep.unbind(1), added.unbind(1), strict=True):
                steps.append(kept * steps[-1] + new if steps else new)
            memories.append(torch.stack(steps, 1))
            x = layer(x, memories[-1])
        return x, torch.stack(memories, 2)  # (B, T, layers, D)

    def select(self, caches: Tensor, indices: Tensor, steps: int | None = None) -> Tensor:
        row = torch.arange(len(indices), device=indices.device).unsqueeze(1)
        return caches.detach()[row, indices].flatten(0, 1)

    def initial_cache(self, streams: int) -> Tensor:
        like = next(self.parameters())
        return like.new_zeros(streams, len(self.layers), self.width)

    def step(self, token: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        x, memories = token, []
        for layer, memory in zip(self.layers, cache.unbind(1), strict=True):
            keep, added = layer.weigh(x)
            memories.append(keep * memory + added)
            x = layer(x, memories[-1])
        return x, torch.stack(memories, 1)

    def stack(self, caches: list[Tensor]) -> Tensor:
        return torch.stack(caches, 1)

    def reset(self, cache: Tensor, mask: Tensor) -> Tensor:
        return cache.masked_fill(mask[:, None, None], 0.0)

    def replace(self, cache: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask[:, None, None], other, cache)

    def cache_to_dict(self, cache: Tensor) -> dict[str, Tensor]:
        return {"memory": cache}

    def cache_from_dict(self, tensors: dict[str, Tensor]) -> Tensor:
        return tensors["memory"]
