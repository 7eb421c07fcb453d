"""The actor: a distribution over actions for each feature, over choices or over numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmdreamer.nn.functional import categorical_entropy, mode_one_hot, sample_one_hot, unimix
from llmdreamer.nn.layers import MLP
from llmdreamer.types import Code

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig
    from llmdreamer.types import EnvSpec


@dataclass(frozen=True)
class DiscretePolicy:
    """Independent choices, side by side: of sizes `choices`, A in sum."""

    log_probs: Tensor  # (..., A), each choice normalised
    choices: tuple[int, ...]

    def sample(self) -> Tensor:
        """One-hot rows side by side, (..., A)."""
        return torch.cat([sample_one_hot(part) for part in self._parts()], -1)

    def mode(self) -> Tensor:
        """One-hot rows side by side, (..., A)."""
        return torch.cat([mode_one_hot(part) for part in self._parts()], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """(..., A) one-hot rows -> (...), in nats, summed over the choices."""
        return (self.log_probs * action).sum(-1)

    def entropy(self) -> Tensor:
        """(...), in nats, summed over the choices; log of their sizes' product at most."""
        return torch.stack([categorical_entropy(part) for part in self._parts()]).sum(0)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.log_probs.split(self.choices, -1)


@dataclass(frozen=True)
class NormalPolicy:
    """Independent normals. Samples are not bounded; what is executed is clipped to [-1, 1]."""

    mean: Tensor  # (..., A), in (-1, 1)
    std: Tensor  # (..., A)

    def sample(self) -> Tensor:
        """(..., A)."""
        return self.mean.detach() + self.std.detach() * torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        """(..., A), in (-1, 1)."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Density of a sample before it is clipped, (..., A) -> (...), in nats, summed over A."""
        distance = (action - self.mean) / self.std
        density = -0.5 * (distance.square() + math.log(2 * math.pi)) - self.std.log()
        return density.sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy (...), in nats, summed over A; it may be negative."""
        return (0.5 + 0.5 * math.log(2 * math.pi) + self.std.log()).sum(-1)


Policy = DiscretePolicy | NormalPolicy


class Actor(nn.Module):
    """Features to a policy of the kind that the environment's actions are.

    Discrete: a share of every choice's distribution is the uniform one, so that no probability is
    zero. Continuous: `bounded_normal` of danijar/dreamerv3 (2025), mean tanh(m) and standard deviation
    (max_std - min_std) * sigmoid(s + 2) + min_std, of the outputs m and s.
    """

    def __init__(self, features: int, spec: EnvSpec, algo: AlgoConfig) -> None:
        super().__init__()
        self.config = algo.actor
        self.discrete, self.choices = spec.discrete, spec.choices
        outputs = spec.action_size * (1 if spec.discrete else 2)
        # Nearly the same policy at first, whatever the feature: uniform, or of mean zero.
        self.mlp = MLP(features, algo.dense_units, algo.mlp_layers, outputs, out_scale=0.01)

    def forward(self, features: Tensor | Code) -> Policy:
        """(..., F) -> a policy over (..., A)."""
        outputs: Tensor = self.mlp(features)
        if self.discrete:
            parts = [unimix(part, self.config.unimix) for part in outputs.split(self.choices, -1)]
            return DiscretePolicy(torch.cat(parts, -1), self.choices)
        mean, std = outputs.chunk(2, -1)
        low, high = self.config.min_std, self.config.max_std
        return NormalPolicy(mean.tanh(), (high - low) * (std + 2.0).sigmoid() + low)
