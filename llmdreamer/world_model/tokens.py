"""Projects a latent and an action to a token of the backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llmdreamer.backbones import Backbone
from llmdreamer.nn.layers import MLP, RMSNorm, init_linear
from llmdreamer.types import IndexedLatent


class SeparateInputProjection(nn.Module):
    """Projects the action and z by one layer of `units` each, and both results by one linear layer.

    Source: danijar/dreamerv3 (2025), `rssm.py:RSSM._core`: `dynin2`, `dynin1` and their part of `dynhid0`.

    Args:
        rms: root mean square of the output at initialization.
    """

    def __init__(self, action: int, stoch: int, units: int, out: int, rms: float) -> None:
        super().__init__()
        self.sizes = [action, stoch]
        self.action = MLP(action, units, 1)
        self.stoch = MLP(stoch, units, 1)
        # A unit after norm and SiLU has 0.596 of the RMS that the initializer assumes.
        self.join = init_linear(nn.Linear(2 * units, out), rms / 0.596)

    def forward(self, input: Tensor | IndexedLatent) -> Tensor:
        if isinstance(input, IndexedLatent):
            action = input.deter
            stoch: Tensor | IndexedLatent = IndexedLatent(action[..., :0], input.stoch_index)
        else:
            action, stoch = input.split(self.sizes, -1)
        joined: Tensor = self.join(torch.cat([self.action(action), self.stoch(stoch)], -1))
        return joined


class TokenProjection(nn.Module):
    """Projects z and the action to a token with the RMS of the backbone's own word embeddings.

    For a backbone with `uses_rssm_input` it is DreamerV3's projection, without a norm.
    """

    def __init__(
        self, stoch: tuple[int, int], action_size: int, units: int, backbone: Backbone
    ) -> None:
        super().__init__()
        # The input is the action, then z.
        sizes, width = (action_size, stoch[0] * stoch[1]), backbone.width
        self.project: nn.Module
        self.norm: nn.Module
        if backbone.uses_rssm_input:
            self.project = SeparateInputProjection(*sizes, units, width, backbone.input_rms)
            # DreamerV3 sets z and action to zero at the start of an episode. Here the first token is
            # learned, and initialized to zero.
            self.start = nn.Parameter(torch.zeros(width))
            self.norm = nn.Identity()
            return
        self.project = MLP(sum(sizes), units, 1, width)
        self.start = nn.Parameter(torch.randn(width))
        self.norm = RMSNorm(width)
        nn.init.constant_(self.norm.weight, backbone.input_rms)

    def forward(self, stoch: Tensor, action: Tensor, is_first: Tensor) -> Tensor:
        """Project the previous z (..., S, K) and action (..., A) to tokens (..., D).

        Args:
            is_first: (...), bool: true where an episode begins, so that there is no previous step.
        """
        # A continuous action enters clipped, as it was executed. Clipping does not change one-hot actions.
        previous = torch.cat([action.clamp(-1.0, 1.0), stoch.flatten(-2)], -1)
        first = is_first.unsqueeze(-1).to(previous.dtype)
        return self._scaled(self.project(previous * (1 - first)) + first * self.start)

    def imagined(self, stoch_index: Tensor, action: Tensor) -> Tensor:
        """Project z, given by the indices of its ones (..., S), and an action (..., A), inside an episode."""
        # The action takes the place of `deter`: either is a dense vector in front of the categoricals.
        return self._scaled(self.project(IndexedLatent(action.clamp(-1.0, 1.0), stoch_index)))

    def _scaled(self, token: Tensor) -> Tensor:
        scaled: Tensor = self.norm(token)
        return scaled
