"""Turns a latent and an action into a vector that the backbone takes for a word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmdreamer.backbones import Backbone
from llmdreamer.nets import MLP, RMSNorm
from llmdreamer.types import Code


class TokenProjection(nn.Module):
    """Proj(z, a), scaled to the size of the word embeddings that the backbone was trained on."""

    def __init__(
        self, stoch: tuple[int, int], action_size: int, units: int, backbone: Backbone
    ) -> None:
        super().__init__()
        # Its input is what a `Code` stands for: the action, then z.
        self.project = MLP(action_size + stoch[0] * stoch[1], units, 1, backbone.width)
        self.start = nn.Parameter(torch.randn(backbone.width))
        self.norm = RMSNorm(backbone.width)
        nn.init.constant_(self.norm.weight, backbone.input_rms)

    def forward(self, stoch: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """Tokens (..., D) from the previous z (..., S, K) and action (..., A).

        Args:
            is_first: (...), bool: where an episode begins, so that there is no previous step.
        """
        # A continuous action enters as it was executed: clipped. Others are not changed by it.
        previous = torch.cat([action.clamp(-1.0, 1.0), stoch.flatten(-2)], -1)
        first = is_first.unsqueeze(-1).to(previous.dtype)
        return self._scaled(self.project(previous * (1 - first)) + first * self.start)

    def imagined(self, ones: Tensor, action: Tensor) -> Tensor:
        """The same of a z by the places of its ones (..., S), in the midst of an episode."""
        return self._scaled(self.project(Code(action.clamp(-1.0, 1.0), ones)))

    def _scaled(self, token: Tensor) -> Tensor:
        scaled: Tensor = self.norm(token)
        return scaled
