"""The networks that read and draw pictures, as danijar/dreamerv3 (2025) has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmdreamer.nn.layers import init_linear

MULTIPLES = (2, 3, 4, 4)
"""Channels of the four stages, in units of `depth`."""

SHRINK = 2 ** len(MULTIPLES)
KERNEL = 5

Shapes = Mapping[str, tuple[int, ...]]


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of every pixel: (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)  # under autocast it is in half precision
        scale = x.square().mean(1, keepdim=True).add(1e-4).rsqrt()
        return x * scale * self.weight[:, None, None]


class ImageEncoder(nn.Module):
    """Four times (convolution, halved by its maximum, RMSNorm, SiLU) over all images at once.

    Images are concatenated by channels, so that one network sees them together. The last stage is
    flattened: (size / 16)² * 4 * depth numbers.
    """

    def __init__(self, shapes: Shapes, keys: Sequence[str], depth: int) -> None:
        super().__init__()
        self.keys = list(keys)
        channels, size = _common(shapes, keys)
        stages: list[nn.Module] = []
        for multiple in MULTIPLES:
            convolution = nn.Conv2d(channels, channels := depth * multiple, KERNEL, padding="same")
            stages += [_init(convolution), nn.MaxPool2d(2), ChannelNorm(channels), nn.SiLU()]
        self.stages = nn.Sequential(*stages)
        self.width = channels * (size // SHRINK) ** 2

    def forward(self, observations: Mapping[str, Tensor], lead: int) -> Tensor:
        """uint8 (*lead dims, H, W, C) of each key -> (*lead dims, width)."""
        pixels = _pixels(observations, self.keys) - 0.5
        outer = pixels.shape[:lead]
        hidden: Tensor = self.stages(pixels.flatten(0, lead - 1).permute(0, 3, 1, 2))
        return hidden.flatten(1).unflatten(0, outer)


class ImageDecoder(nn.Module):
    """A feature to pixels in [0, 1]: a small picture, four times (doubled, convolution)."""

    def __init__(self, features: int, shapes: Shapes, keys: Sequence[str], depth: int) -> None:
        super().__init__()
        self.keys = list(keys)
        self.channels = [shapes[key][2] for key in keys]
        drawn, size = _common(shapes, keys)
        channels = depth * MULTIPLES[-1]
        self.smallest = (channels, size // SHRINK, size // SHRINK)
        self.space = init_linear(nn.Linear(features, math.prod(self.smallest)))
        stages: list[nn.Module] = [ChannelNorm(channels), nn.SiLU()]
        for multiple in reversed(MULTIPLES[:-1]):
            convolution = nn.Conv2d(channels, channels := depth * multiple, KERNEL, padding="same")
            stages += [_Doubled(), _init(convolution), ChannelNorm(channels), nn.SiLU()]
        stages += [_Doubled(), _init(nn.Conv2d(channels, drawn, KERNEL, padding="same"))]
        self.stages = nn.Sequential(*stages)

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """(..., F) -> pixels of each key, (..., H, W, C) in [0, 1]."""
        smallest = self.space(feature.flatten(0, -2)).unflatten(-1, self.smallest)
        drawn = self.stages(smallest).to(self.space.weight.dtype)
        pixels = drawn.sigmoid().permute(0, 2, 3, 1)
        pixels = pixels.unflatten(0, feature.shape[:-1])
        return dict(zip(self.keys, pixels.split(self.channels, -1), strict=True))

    def loss(self, feature: Tensor, observations: Mapping[str, Tensor]) -> Tensor:
        """Squared error of pixels in [0, 1], summed over pixels, channels, keys: (B, T, F) -> (B, T)."""
        drawn = torch.cat(list(self(feature).values()), -1)
        return (drawn - _pixels(observations, self.keys)).square().sum((-3, -2, -1))


class _Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _pixels(observations: Mapping[str, Tensor], keys: Sequence[str]) -> Tensor:
    """All images side by side by channels, in [0, 1]."""
    return torch.cat([observations[key] for key in keys], -1).float() / 255.0


def _common(shapes: Shapes, keys: Sequence[str]) -> tuple[int, int]:
    """The channels of all images together, and their common side."""
    sides = {side for key in keys for side in shapes[key][:2]}
    assert len(sides) == 1, sides  # the environment layer makes them so
    return sum(shapes[key][2] for key in keys), sides.pop()


def _init(layer: nn.Conv2d) -> nn.Conv2d:
    """Truncated normal of variance 1 / fan_in, zero bias, as `init_linear`."""
    fan_in = math.prod(layer.weight.shape[1:])
    std = 1.0 / math.sqrt(fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
