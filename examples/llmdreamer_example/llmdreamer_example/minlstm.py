"""minLSTM (arXiv:2410.01201, "Were RNNs all we needed?") as a backbone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmdreamer.backbones import Backbone
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import Config


def make(config: Config, width: int, layers: int) -> MinLSTM:
    """Build the backbone: `backbone.factory`. `width` and `layers` come from `backbone.options`."""
    if min(width, layers) < 1:
        raise ConfigError(f"backbone.options={{width:{width},layers:{layers}}}: both must be >= 1")
    return MinLSTM(width, layers)


class Layer(nn.Module):
    """x + out(hidden), with hidden = f' * (previous hidden) + i' * candidate and f' + i' = 1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, 1e-4)
        self.gates = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)

    def gate_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fraction of the hidden state that is kept, and what is added to it, for x (..., D)."""
        forget, write, candidate = self.gates(self.norm(x)).float().chunk(3, -1)
        # sigmoid(f) / (sigmoid(f) + sigmoid(i)), without dividing small numbers.
        keep = torch.sigmoid(nn.functional.logsigmoid(forget) - nn.functional.logsigmoid(write))
        return keep, (1 - keep) * candidate

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        mixed: Tensor = x + self.out(hidden)
        return mixed


class MinLSTM(Backbone):
    """Layers of minLSTM. Gates do not depend on the hidden state, so all tokens are gated at once.

    Its cache is the hidden state of all layers, (N, layers, D).
    """

    input_rms = 1.0
    recurrent = True

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.width = width
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, Tensor]:
        x, hiddens = tokens, []
        for layer in self.layers:
            keep, added = layer.gate_values(x)
            keep = keep * ~is_first.unsqueeze(-1)
            steps: list[Tensor] = []
            for kept, new in zip(keep.unbind(1), added.unbind(1), strict=True):
                steps.append(kept * steps[-1] + new if steps else new)
            hiddens.append(torch.stack(steps, 1))
            x = layer(x, hiddens[-1])
        return x, torch.stack(hiddens, 2)  # (B, T, layers, D)

    def select(self, caches: Tensor, indices: Tensor, steps: int | None = None) -> Tensor:
        batch = torch.arange(len(indices), device=indices.device).unsqueeze(1)
        return caches.detach()[batch, indices].flatten(0, 1)

    def initial_cache(self, streams: int) -> Tensor:
        return next(self.parameters()).new_zeros(streams, len(self.layers), self.width)

    def step(self, token: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        x, hiddens = token, []
        for layer, hidden in zip(self.layers, cache.unbind(1), strict=True):
            keep, added = layer.gate_values(x)
            hiddens.append(keep * hidden + added)
            x = layer(x, hiddens[-1])
        return x, torch.stack(hiddens, 1)

    def stack(self, caches: list[Tensor]) -> Tensor:
        return torch.stack(caches, 1)

    def reset(self, cache: Tensor, mask: Tensor) -> Tensor:
        return cache.masked_fill(mask[:, None, None], 0.0)

    def replace(self, cache: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask[:, None, None], other, cache)

    def cache_to_dict(self, cache: Tensor) -> dict[str, Tensor]:
        return {"hidden": cache}

    def cache_from_dict(self, tensors: dict[str, Tensor]) -> Tensor:
        return tensors["hidden"]
