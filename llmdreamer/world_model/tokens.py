"""Turns a latent and an action into a vector that the backbone takes for a word."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmdreamer.backbones import Backbone
from llmdreamer.nn.layers import MLP, RMSNorm, init_linear
from llmdreamer.types import Code


class InOwnLayers(nn.Module):
    """The action and z each through a layer of `units`, then both through one linear layer.

    Source: danijar/dreamerv3 (2025), `rssm.py:RSSM._core`: `dynin2`, `dynin1` and their part of `dynhid0`.

    Args:
        rms: of what comes out, at first.
    """

    def __init__(self, action: int, stoch: int, units: int, out: int, rms: float) -> None:
        super().__init__()
        self.sizes = [action, stoch]
        self.action = MLP(action, units, 1)
        self.stoch = MLP(stoch, units, 1)
        # A unit after norm and SiLU has 0.596 of the RMS that the initialiser takes it to have.
        self.join = init_linear(nn.Linear(2 * units, out), rms / 0.596)

    def forward(self, input: Tensor | Code) -> Tensor:
        if isinstance(input, Code):
            action, stoch = input.dense, Code(input.dense[..., :0], input.ones)
        else:
            action, stoch = input.split(self.sizes, -1)
        joined: Tensor = self.join(torch.cat([self.action(action), self.stoch(stoch)], -1))
        return joined


class TokenProjection(nn.Module):
    """Proj(z, a), scaled to the size of the word embeddings that the backbone was trained on.

    Of a backbone that is `uses_rssm_input`, what its author's code makes of them: nothing norms their sum.
    """

    def __init__(
        self, stoch: tuple[int, int], action_size: int, units: int, backbone: Backbone
    ) -> None:
        super().__init__()
        # Its input is what a `Code` stands for: the action, then z.
        sizes, width = (action_size, stoch[0] * stoch[1]), backbone.width
        self.project: nn.Module
        self.norm: nn.Module
        if backbone.uses_rssm_input:
            self.project = InOwnLayers(*sizes, units, width, backbone.input_rms)
            # At first an episode begins with zeros in both their places, as it always does there.
            self.start = nn.Parameter(torch.zeros(width))
            self.norm = nn.Identity()
            return
        self.project = MLP(sum(sizes), units, 1, width)
        self.start = nn.Parameter(torch.randn(width))
        self.norm = RMSNorm(width)
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
