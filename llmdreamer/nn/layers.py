"""The networks around the backbone: MLPs, the encoder and decoder of vectors, and heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmdreamer.nn.functional import (
    even_bins,
    even_two_hot,
    linear_at,
    sample_mixed,
    symexp,
    symexp_bins,
    symlog,
    two_hot_losses,
    two_hot_mean,
    unimix,
)
from llmdreamer.types import IndexedLatent

Linear = TypeVar("Linear", bound=nn.Linear)


def init_linear(layer: Linear, scale: float = 1.0) -> Linear:
    """Initialize as DreamerV3 does: truncated normal of variance scale² / fan_in, zero bias."""
    # 0.8796 is the standard deviation of a unit normal truncated at two standard deviations.
    std = scale / math.sqrt(layer.in_features) / 0.87962566103423978
    if scale == 0.0:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class FeatureLinear(nn.Linear):
    """A linear layer that also accepts an `IndexedLatent`; the result is that of its feature."""

    def forward(self, input: Tensor | IndexedLatent) -> Tensor:
        """(..., F) -> (..., out)."""
        if isinstance(input, Tensor):
            return super().forward(input)
        width = input.deter.shape[-1]
        dense = F.linear(input.deter, self.weight[:, :width], self.bias)
        return dense + linear_at(input.stoch_index, self.weight[:, width:])


class BlockLinear(nn.Module):
    """A block-diagonal linear layer: (..., features) -> (..., out), with `blocks` equal blocks.

    Initialized like a dense layer of `features` inputs: danijar/dreamerv3 (2025), `nets.py:BlockLinear`.

    Args:
        scale: scale of the initializer.
    """

    def __init__(
        self, features: int, out: int, blocks: int, scale: float = 1.0, *, bias: bool = True
    ) -> None:
        super().__init__()
        dense = init_linear(nn.Linear(features, out // blocks, bias=False), scale).weight.detach()
        self.weight = nn.Parameter(dense.T.unflatten(0, (blocks, -1)).contiguous())
        self.bias = nn.Parameter(torch.zeros(out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        inputs = x.flatten(0, -2).unflatten(-1, (len(self.weight), -1)).transpose(0, 1)
        outputs = torch.bmm(inputs, self.weight).transpose(0, 1).reshape(*x.shape[:-1], -1)
        return outputs if self.bias is None else outputs + self.bias


class RMSNorm(nn.RMSNorm):
    """torch's RMSNorm with eps 1e-4, computed in the precision of its weight even under autocast."""

    def __init__(self, features: int) -> None:
        super().__init__(features, 1e-4)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class MLP(nn.Sequential):
    """`layers` times (linear, RMSNorm, SiLU), then a linear layer to `out` features if `out` is given.

    The input is (..., features), or an `IndexedLatent` whose feature has that size. The output has the
    weights' precision even under autocast, and so have losses and probabilities.

    Args:
        out_scale: scale of the last layer's initializer; 0 makes the output zero at initialization.
        exact: run the last layer without autocast.
    """

    def __init__(
        self,
        features: int,
        units: int,
        layers: int,
        out: int | None = None,
        out_scale: float = 1.0,
        *,
        exact: bool = False,
    ) -> None:
        blocks: list[nn.Module] = []
        for _ in range(layers):
            linear = init_linear(FeatureLinear(features, units))
            blocks += [linear, RMSNorm(units), nn.SiLU()]
            features = units
        if out is not None:
            blocks.append(init_linear(FeatureLinear(features, out), out_scale))
        super().__init__(*blocks)
        self.exact = exact

    def forward(self, input: Tensor | IndexedLatent) -> Tensor:
        """(..., features) -> (..., out or units)."""
        *hidden, last = self
        x: Any = input
        for block in hidden:
            x = block(x)
        if self.exact:
            with torch.autocast(x.device.type, enabled=False):
                x = last(x)
        else:
            x = last(x)
        output: Tensor = x.to(self[0].weight.dtype)
        return output


BIN_LIMIT = 6.0
"""Position of the outer bins. The `Standardizer` encodes 11 standard deviations from the mean as 6."""

MAX_BINNED_NUMBERS = 256
"""Largest total size of vectors that get bins. Larger vectors are images or one-hot codes."""


class VectorEncoder(nn.Module):
    """An MLP on the encoded vectors, concatenated in the order of `keys`.

    With bins, each number enters twice: as it is, and as its weights on the two nearest of `bins` even bins.
    The reason: a linear layer with a norm behind it keeps little more than the direction of its input. If one
    number is already large, a change of it hardly turns that direction. With bins it turns as much anywhere.

    Args:
        bins: bins of each number; 0 for the number alone.
    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        keys: Sequence[str],
        units: int,
        layers: int,
        bins: int = 0,
    ) -> None:
        super().__init__()
        self.keys = list(keys)
        numbers = sum(math.prod(shapes[key]) for key in keys)
        self.bins = bins if numbers <= MAX_BINNED_NUMBERS else 0
        self.mlp = MLP(numbers * (1 + self.bins), units, layers)

    def forward(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """(..., size) of each key, as the `Standardizer` encodes it -> (..., E)."""
        inputs = torch.cat([vectors[key] for key in self.keys], -1)
        if self.bins > 0:
            weights = even_two_hot(inputs, self.bins, BIN_LIMIT)
            inputs = torch.cat([inputs, weights.flatten(-2)], -1)
        embedding: Tensor = self.mlp(inputs)
        return embedding


class VectorDecoder(nn.Module):
    """Predicts each encoded vector from the feature."""

    def __init__(
        self,
        features: int,
        shapes: Mapping[str, tuple[int, ...]],
        keys: Sequence[str],
        units: int,
        layers: int,
    ) -> None:
        super().__init__()
        self.keys = list(keys)
        self.sizes = [math.prod(shapes[key]) for key in keys]
        self.mlp = MLP(features, units, layers, sum(self.sizes))

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """Predict each key as the `Standardizer` encodes it: (..., F) -> (..., size)."""
        predictions = self.mlp(feature).split(self.sizes, -1)
        return dict(zip(self.keys, predictions, strict=True))

    def loss(self, feature: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
        """Squared error of encoded vectors, summed over numbers and keys: (B, T, F) -> (B, T)."""
        predicted = self(feature)
        losses = [(predicted[key] - vectors[key]).square().sum(-1) for key in self.keys]
        return torch.stack(losses).sum(0)


class TwoHotHead(nn.Module):
    """Predicts a scalar by a categorical over symexp-spaced bins; its mean is zero at initialization.

    Args:
        in_symlog: predict the scalar's symlog over evenly spaced bins instead, as in 2023
            (arXiv:2301.04104v1). The mean is then taken in symlog space, so it is not the scalar's
            expectation.
    """

    bins: Tensor

    def __init__(
        self, features: int, units: int, layers: int, bins: int, in_symlog: bool = False
    ) -> None:
        super().__init__()
        self.in_symlog = in_symlog
        # Bins reach 5e8: bfloat16 rounding of an outer logit would move the mean by hundreds.
        self.mlp = MLP(features, units, layers, bins, out_scale=0.0, exact=True)
        positions = even_bins(bins) if in_symlog else symexp_bins(bins)
        self.register_buffer("bins", positions, persistent=False)

    def forward(self, feature: Tensor | IndexedLatent) -> Tensor:
        """(..., F) -> logits (..., bins)."""
        logits: Tensor = self.mlp(feature)
        return logits

    def mean(self, logits: Tensor) -> Tensor:
        """Return the predicted scalar: logits (..., bins) -> (...)."""
        mean = two_hot_mean(logits, self.bins)
        return symexp(mean) if self.in_symlog else mean

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Loss of each distribution (..., bins) against its target (...): (...)."""
        return self.losses(logits, target.unsqueeze(-1)).squeeze(-1)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of each distribution (..., bins) against M targets: (..., M)."""
        return two_hot_losses(logits, symlog(targets) if self.in_symlog else targets, self.bins)


class ContinueHead(nn.Module):
    """Predicts gamma * P(not terminated): the discount that imagination uses.

    Source: danijar/dreamerv3 (2025), `contdisc`: the target is (1 - 1/horizon) * not terminated.

    Args:
        discount_in_head: if False, the head predicts P(not terminated) and `discount` multiplies it by
            gamma, as in 2023.
    """

    def __init__(
        self, features: int, units: int, layers: int, gamma: float, discount_in_head: bool = True
    ) -> None:
        super().__init__()
        self.mlp = MLP(features, units, layers, 1)
        self.gamma = gamma
        self.discount_in_head = discount_in_head

    def forward(self, feature: Tensor | IndexedLatent) -> Tensor:
        """(..., F) -> logits (...)."""
        logits: Tensor = self.mlp(feature).squeeze(-1)
        return logits

    def loss(self, logits: Tensor, terminated: Tensor) -> Tensor:
        """Binary cross-entropy: logits (...), terminated (...), bool -> (...)."""
        target = (~terminated).to(logits.dtype)
        target = self.gamma * target if self.discount_in_head else target
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none")

    def probability(self, logits: Tensor) -> Tensor:
        """(...) logits -> P(not terminated), (...). Above 1 where the predicted discount exceeds gamma."""
        return self.discount(logits) / max(self.gamma, torch.finfo(logits.dtype).tiny)

    def discount(self, logits: Tensor) -> Tensor:
        """(...) logits -> gamma * P(not terminated), (...)."""
        probability = logits.sigmoid()
        return probability if self.discount_in_head else self.gamma * probability


class CategoricalHead(nn.Module):
    """Predicts S independent categoricals of K classes: the distribution of a latent.

    Returns unimixed log-probabilities (..., S, K).
    """

    def __init__(
        self,
        features: int,
        units: int,
        layers: int,
        shape: tuple[int, int],
        unimix_share: float,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.unimix_share = unimix_share
        self.mlp = MLP(features, units, layers, shape[0] * shape[1])

    def forward(self, features: Tensor) -> Tensor:
        return unimix(self._logits(features), self.unimix_share)

    def sample(self, features: Tensor) -> Tensor:
        """Sample the class of each categorical: (..., S, 1), int64, as `forward` distributes it."""
        return sample_mixed(self._logits(features), self.unimix_share)

    def _logits(self, features: Tensor) -> Tensor:
        logits: Tensor = self.mlp(features)
        return logits.unflatten(-1, self.shape)
