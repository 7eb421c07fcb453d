"""The actor: maps features to a distribution over actions, discrete or continuous."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmdreamer.nn.functional import categorical_entropy, mode_one_hot, sample_one_hot, unimix
from llmdreamer.nn.layers import MLP
from llmdreamer.types import IndexedLatent

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig
    from llmdreamer.types import EnvSpec


@dataclass(frozen=True)
class DiscretePolicy:
    """Independent categoricals, concatenated. Their sizes are `choices`, A in sum."""

    log_probs: Tensor  # (..., A), normalized for each choice
    choices: tuple[int, ...]

    def sample(self) -> Tensor:
        """Sample each choice: concatenated one-hot vectors, (..., A)."""
        return torch.cat([sample_one_hot(choice) for choice in self._choices()], -1)

    def mode(self) -> Tensor:
        """Take the most probable class of each choice: concatenated one-hot vectors, (..., A)."""
        return torch.cat([mode_one_hot(choice) for choice in self._choices()], -1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-probability of concatenated one-hot vectors, summed over choices: (..., A) -> (...)."""
        return (self.log_probs * action).sum(-1)

    def entropy(self) -> Tensor:
        """Entropy (...), in nats, summed over choices; at most the log of the product of their sizes."""
        return torch.stack([categorical_entropy(choice) for choice in self._choices()]).sum(0)

    def _choices(self) -> tuple[Tensor, ...]:
        return self.log_probs.split(self.choices, -1)


@dataclass(frozen=True)
class NormalPolicy:
    """Independent normals. Samples are not bounded; executed actions are clipped to [-1, 1]."""

    mean: Tensor  # (..., A), in (-1, 1)
    std: Tensor  # (..., A)

    def sample(self) -> Tensor:
        """Sample without gradient: (..., A)."""
        return self.mean.detach() + self.std.detach() * torch.randn_like(self.mean)

    def mode(self) -> Tensor:
        """Return the mean: (..., A), in (-1, 1)."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log-density of a sample before clipping, summed over A: (..., A) -> (...), in nats."""
        distance = (action - self.mean) / self.std
        density = -0.5 * (distance.square() + math.log(2 * math.pi)) - self.std.log()
        return density.sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy (...), in nats, summed over A; it may be negative."""
        return (0.5 + 0.5 * math.log(2 * math.pi) + self.std.log()).sum(-1)


ActionDistribution = DiscretePolicy | NormalPolicy


class Actor(nn.Module):
    """Maps features to a discrete or a continuous distribution, as the environment's actions require.

    Discrete: each choice's distribution is mixed with the uniform one, so that no probability is zero.
    Continuous: `bounded_normal` of danijar/dreamerv3 (2025), mean tanh(m) and standard deviation
    (max_std - min_std) * sigmoid(s + 2) + min_std, of the outputs m and s.
    """

    def __init__(self, features: int, spec: EnvSpec, algo: AlgoConfig) -> None:
        super().__init__()
        self.config = algo.actor
        self.discrete, self.choices = spec.discrete, spec.choices
        outputs = spec.action_size * (1 if spec.discrete else 2)
        # The small scale makes the initial policy nearly uniform, or normal with a mean near zero.
        self.mlp = MLP(features, algo.dense_units, algo.mlp_layers, outputs, out_scale=0.01)

    def forward(self, features: Tensor | IndexedLatent) -> ActionDistribution:
        """Map features (..., F) to a distribution over (..., A)."""
        outputs: Tensor = self.mlp(features)
        if self.discrete:
            choices = [
                unimix(logits, self.config.unimix) for logits in outputs.split(self.choices, -1)
            ]
            return DiscretePolicy(torch.cat(choices, -1), self.choices)
        mean, std = outputs.chunk(2, -1)
        low, high = self.config.min_std, self.config.max_std
        return NormalPolicy(mean.tanh(), (high - low) * (std + 2.0).sigmoid() + low)

    def sample(self, features: Tensor | IndexedLatent) -> Tensor:
        """Sample actions for imagination: (N, F) -> (N, A)."""
        return self(features).sample()  # type: ignore[no-any-return]
