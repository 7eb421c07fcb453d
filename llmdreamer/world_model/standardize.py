"""Standardizes vector observations by running statistics of all collected time steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from llmdreamer.nn.functional import symexp, symlog
from llmdreamer.utils import distributed

LINEAR_RANGE = 3.0
"""Standard deviations around the mean within which an encoded number is nearly linear."""

MIN_RELATIVE_DEVIATION = 1e-6
"""Smallest standard deviation, as a share of the mean. A number that varies less counts as constant, because
float32 does not resolve it."""


class Standardizer(nn.Module):
    """Running mean and standard deviation of every number of the vector observations.

    `forward` maps a number with standardized value z to y = 3 asinh(z / 3). Within three standard deviations
    y is nearly z. Beyond them it grows like a logarithm, so outliers do not dominate. An observation in
    another unit gives the same y, once the statistics have seen the data.

    The statistics are buffers, so they are saved, resumed and exported with the weights. Only `update`
    changes them. The collector calls it between updates of the weights.

    Args:
        shapes: shapes of the observations, by key.
        keys: keys of the vectors to standardize. Duplicates count once.
        enabled: False keeps no statistics: y is the symlog of the number, as in DreamerV3.
    """

    count: Tensor  # (), time steps
    mean: Tensor  # (numbers,), of all keys
    squared_deviation: Tensor  # (numbers,), sum over time steps

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], keys: Sequence[str], *, enabled: bool = True
    ) -> None:
        super().__init__()
        self.keys = list(dict.fromkeys(keys))
        self.sizes = [math.prod(shapes[key]) for key in self.keys]
        self.enabled = enabled and bool(self.keys)
        if self.enabled:
            # float64: in float32 the statistics would stop moving after some million steps.
            zeros = torch.zeros(sum(self.sizes), dtype=torch.float64)
            self.register_buffer("count", zeros.new_zeros(()))
            self.register_buffer("mean", zeros)
            self.register_buffer("squared_deviation", zeros.clone())

    @torch.no_grad()
    def update(self, steps: Sequence[Mapping[str, NDArray[np.float32]]]) -> None:
        """Add the time steps of all processes to the statistics. Every process must call it.

        Args:
            steps: observations by key, each (n, ...); n may differ between items and may be zero.
        """
        if not self.enabled:
            return
        sizes = dict(zip(self.keys, self.sizes, strict=True))
        vectors = [
            np.concatenate([step[key].reshape(-1, size) for key, size in sizes.items()], 1)
            for step in steps
        ]
        numbers = np.concatenate(vectors).astype(np.float64)
        count = len(numbers)
        mean = numbers.sum(0) / max(1, count)
        moments = np.stack([np.full_like(mean, count), mean, np.square(numbers - mean).sum(0)])
        mine = torch.from_numpy(moments).unsqueeze(0).to(self.mean.device)
        for part in distributed.all_gather(mine):
            self._merge(*part)

    def _merge(self, count: Tensor, mean: Tensor, squared_deviation: Tensor) -> None:
        """Add the statistics of other time steps, each (numbers,).

        Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm", 1979.
        """
        total = (self.count + count).clamp(min=1)
        shift = mean - self.mean
        self.mean += shift * (count / total)
        self.squared_deviation += squared_deviation + shift.square() * (self.count * count / total)
        self.count += count[0]

    def forward(self, observations: Mapping[str, Tensor], lead: int) -> dict[str, Tensor]:
        """Encode the vectors, (*lead dims, ...) -> (*lead dims, numbers). Other keys stay as they are."""
        encoded = dict(observations)
        for key, mean, deviation in self._statistics():
            vector = observations[key].flatten(lead)
            if mean is None or deviation is None:
                encoded[key] = symlog(vector)
            else:
                z = (vector - mean.to(vector.dtype)) / deviation.to(vector.dtype)
                encoded[key] = LINEAR_RANGE * torch.asinh(z / LINEAR_RANGE)
        return encoded

    def decode(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return encoded vectors (..., numbers) in the environment's units: the inverse of `forward`."""
        decoded = {}
        for key, mean, deviation in self._statistics():
            if key not in vectors:
                continue
            y = vectors[key]
            if mean is None or deviation is None:
                decoded[key] = symexp(y)
            else:
                z = LINEAR_RANGE * torch.sinh(y / LINEAR_RANGE)
                decoded[key] = mean.to(y.dtype) + deviation.to(y.dtype) * z
        return decoded

    def _statistics(self) -> Iterator[tuple[str, Tensor | None, Tensor | None]]:
        """Yield mean and standard deviation by key; None for both if disabled."""
        if not self.enabled:
            for key in self.keys:
                yield key, None, None
            return
        deviation = (self.squared_deviation / self.count.clamp(min=1)).sqrt()
        varies = deviation > MIN_RELATIVE_DEVIATION * self.mean.abs()
        deviation = torch.where(varies, deviation, 1.0)
        means, deviations = self.mean.split(self.sizes), deviation.split(self.sizes)
        yield from zip(self.keys, means, deviations, strict=True)
