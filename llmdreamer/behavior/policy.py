"""The actor: a distribution over actions for each feature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from llmdreamer.functional import categorical_entropy, mode_one_hot, sample_one_hot
from llmdreamer.nets import CategoricalHead

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig


@dataclass(frozen=True)
class DiscretePolicy:
    """One choice among A actions."""

    log_probs: Tensor  # (..., A), normalised

    def sample(self) -> Tensor:
        """One-hot (..., A)."""
        return sample_one_hot(self.log_probs)

    def mode(self) -> Tensor:
        """One-hot (..., A)."""
        return mode_one_hot(self.log_probs)

    def log_prob(self, action: Tensor) -> Tensor:
        """(..., A) one-hot -> (...), in nats."""
        return (self.log_probs * action).sum(-1)

    def entropy(self) -> Tensor:
        """(...), in nats; log A at most."""
        return categorical_entropy(self.log_probs)


class Actor(nn.Module):
    """A discrete policy with a share of the uniform one, so that no action's probability is zero."""

    def __init__(self, features: int, action_size: int, algo: AlgoConfig) -> None:
        super().__init__()
        self.head = CategoricalHead(
            features,
            algo.dense_units,
            algo.mlp_layers,
            (1, action_size),
            algo.actor.unimix,
            # Nearly uniform at first, whatever the feature.
            out_scale=0.01,
        )

    def forward(self, features: Tensor) -> DiscretePolicy:
        """(..., F) -> a policy over (..., A)."""
        return DiscretePolicy(self.head(features).squeeze(-2))
