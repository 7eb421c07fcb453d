"""Normalizes returns, so that one entropy weight suits every environment."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmdreamer.utils import distributed

if TYPE_CHECKING:
    from llmdreamer.config import ReturnNormConfig


class ReturnNorm(nn.Module):
    """Moving averages of two percentiles of returns. Their distance, at least 1, divides advantages.

    Source: arXiv:2301.04104v2, "Actor learning". Small returns are not scaled up, and outliers are ignored.
    """

    low: Tensor
    high: Tensor

    def __init__(self, config: ReturnNormConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    @torch.no_grad()
    def update(self, returns: Tensor) -> None:
        """Move towards the percentiles of all processes' `returns` (any shape), if they are finite."""
        returns = distributed.all_gather(returns.detach())
        ends = torch.tensor([self.config.low, self.config.high], device=returns.device)
        low, high = torch.quantile(returns.flatten().float(), ends)
        # Once NaN, a moving average stays NaN. Decided on the device, so that the CPU does not wait.
        finite = (high - low).isfinite()
        self.low.lerp_(torch.where(finite, low, self.low), 1 - self.config.decay)
        self.high.lerp_(torch.where(finite, high, self.high), 1 - self.config.decay)

    @property
    def scale(self) -> Tensor:
        return (self.high - self.low).clamp(min=self.config.minimum_scale)
