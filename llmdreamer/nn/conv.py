"""Convolutional image encoder and decoder of danijar/dreamerv3 (2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llmdreamer.nn.layers import init_linear

CHANNEL_MULTIPLES = (2, 3, 4, 4)
"""Output channels of the encoder's four stages, in units of `depth`."""

DOWNSCALE = 2 ** len(CHANNEL_MULTIPLES)
"""The factor by which the encoder reduces an image's side: each stage halves it."""

KERNEL_SIZE = 5

Shapes = Mapping[str, tuple[int, ...]]


class ChannelNorm(nn.Module):
    """RMSNorm over the channels of each pixel: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)  # in half precision under autocast
        scale = x.square().mean(1, keepdim=True).add(1e-4).rsqrt()
        return x * scale * self.weight[:, None, None]


class ImageEncoder(nn.Module):
    """Four stages of convolution, 2 x 2 max-pooling, RMSNorm and SiLU.

    The images of all keys are concatenated along their channels, so that one network reads them together.
    The output of the last stage is flattened: (size / 16)² * 4 * depth numbers.
    """

    def __init__(self, shapes: Shapes, keys: Sequence[str], depth: int) -> None:
        super().__init__()
        self.keys = list(keys)
        channels, size = _channels_and_side(shapes, keys)
        stages: list[nn.Module] = []
        for multiple in CHANNEL_MULTIPLES:
            convolution = nn.Conv2d(
                channels, channels := depth * multiple, KERNEL_SIZE, padding="same"
            )
            stages += [_init(convolution), nn.MaxPool2d(2), ChannelNorm(channels), nn.SiLU()]
        self.stages = nn.Sequential(*stages)
        self.width = channels * (size // DOWNSCALE) ** 2

    def forward(self, observations: Mapping[str, Tensor], lead: int) -> Tensor:
        """Encode the uint8 images (*lead dims, H, W, C) of each key: (*lead dims, width)."""
        pixels = _pixels(observations, self.keys) - 0.5
        outer = pixels.shape[:lead]
        hidden: Tensor = self.stages(pixels.flatten(0, lead - 1).permute(0, 3, 1, 2))
        return hidden.flatten(1).unflatten(0, outer)


class ImageDecoder(nn.Module):
    """Predicts images from the feature: a linear layer, then four stages of upsampling and convolution.

    Pixels are in [0, 1].
    """

    def __init__(self, features: int, shapes: Shapes, keys: Sequence[str], depth: int) -> None:
        super().__init__()
        self.keys = list(keys)
        self.channels = [shapes[key][2] for key in keys]
        out_channels, size = _channels_and_side(shapes, keys)
        channels = depth * CHANNEL_MULTIPLES[-1]
        self.base_shape = (channels, size // DOWNSCALE, size // DOWNSCALE)
        self.space = init_linear(nn.Linear(features, math.prod(self.base_shape)))
        stages: list[nn.Module] = [ChannelNorm(channels), nn.SiLU()]
        for multiple in reversed(CHANNEL_MULTIPLES[:-1]):
            convolution = nn.Conv2d(
                channels, channels := depth * multiple, KERNEL_SIZE, padding="same"
            )
            stages += [_Upsample(), _init(convolution), ChannelNorm(channels), nn.SiLU()]
        stages += [
            _Upsample(),
            _init(nn.Conv2d(channels, out_channels, KERNEL_SIZE, padding="same")),
        ]
        self.stages = nn.Sequential(*stages)

    def forward(self, feature: Tensor) -> dict[str, Tensor]:
        """Predict the images of each key: (..., F) -> (..., H, W, C) in [0, 1]."""
        base = self.space(feature.flatten(0, -2)).unflatten(-1, self.base_shape)
        logits = self.stages(base).to(self.space.weight.dtype)
        pixels = logits.sigmoid().permute(0, 2, 3, 1)
        pixels = pixels.unflatten(0, feature.shape[:-1])
        return dict(zip(self.keys, pixels.split(self.channels, -1), strict=True))

    def loss(self, feature: Tensor, observations: Mapping[str, Tensor]) -> Tensor:
        """Squared error of pixels in [0, 1], summed over pixels, channels and keys: (B, T, F) -> (B, T)."""
        predicted = torch.cat(list(self(feature).values()), -1)
        return (predicted - _pixels(observations, self.keys)).square().sum((-3, -2, -1))


class _Upsample(nn.Module):
    """Doubles height and width by repeating pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _pixels(observations: Mapping[str, Tensor], keys: Sequence[str]) -> Tensor:
    """Concatenate the images of all keys along their channels, scaled to [0, 1]."""
    return torch.cat([observations[key] for key in keys], -1).float() / 255.0


def _channels_and_side(shapes: Shapes, keys: Sequence[str]) -> tuple[int, int]:
    """Return the number of channels of all images together, and the side that they share."""
    sides = {side for key in keys for side in shapes[key][:2]}
    assert len(sides) == 1, sides  # the environment wrappers resize all images to env.image_size
    return sum(shapes[key][2] for key in keys), sides.pop()


def _init(layer: nn.Conv2d) -> nn.Conv2d:
    """Initialize as `init_linear` does: truncated normal of variance 1 / fan_in, zero bias."""
    fan_in = math.prod(layer.weight.shape[1:])
    std = 1.0 / math.sqrt(fan_in) / 0.87962566103423978
    nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
