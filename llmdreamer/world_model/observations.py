"""Encoder and decoder of whole observations, and which key of an environment goes to which network."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmdreamer.backbones.text import TextEncoder
from llmdreamer.nn.conv import SHRINK, ImageDecoder, ImageEncoder
from llmdreamer.nn.functional import symexp
from llmdreamer.nn.layers import VectorDecoder, VectorEncoder
from llmdreamer.types import EnvSpec, Kind
from llmdreamer.utils.errors import ConfigError
from llmdreamer.world_model.words import WordsDecoder

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig

log = logging.getLogger(__name__)

GROUP: dict[Kind, str] = {
    "vector": "algo.mlp_keys",
    "image": "algo.cnn_keys",
    "text": "algo.text_keys",
}
"""Where the keys of a kind are listed."""


class ObservationEncoder(nn.Module):
    """The embeddings of vectors, images and texts, concatenated: E = `width` numbers."""

    def __init__(self, spec: EnvSpec, algo: AlgoConfig, text_embedding: nn.Module | None) -> None:
        super().__init__()
        units, shapes = algo.dense_units, spec.observations
        self.width = 0
        self.vector = self.image = self.text = None
        if algo.mlp_keys.encoder:
            self.vector = VectorEncoder(shapes, algo.mlp_keys.encoder, units, algo.mlp_layers)
            self.width += units
        if algo.cnn_keys.encoder:
            self.image = ImageEncoder(shapes, algo.cnn_keys.encoder, algo.cnn_depth)
            self.width += self.image.width
        if algo.text_keys.encoder:
            assert text_embedding is not None, "texts need a text embedding"
            self.text = TextEncoder(text_embedding, algo.text_keys.encoder, units)
            self.width += self.text.width

    def forward(self, observations: Mapping[str, Tensor], lead: int) -> Tensor:
        """(*lead dims, ...) of each key -> (*lead dims, E)."""
        parts = [part for part in (self.vector, self.image, self.text) if part is not None]
        return torch.cat([part(observations, lead) for part in parts], -1)


class ObservationDecoder(nn.Module):
    """What of an observation the feature must hold: vectors, images, and which words a text has."""

    def __init__(self, features: int, spec: EnvSpec, algo: AlgoConfig) -> None:
        super().__init__()
        shapes, units, layers = spec.observations, algo.dense_units, algo.mlp_layers
        self.vector = self.image = self.words = None
        if algo.mlp_keys.decoder:
            self.vector = VectorDecoder(features, shapes, algo.mlp_keys.decoder, units, layers)
        if algo.cnn_keys.decoder:
            self.image = ImageDecoder(features, shapes, algo.cnn_keys.decoder, algo.cnn_depth)
        if algo.text_keys.decoder:
            self.words = WordsDecoder(features, algo.text_keys.decoder, units, layers)

    @property
    def vectors(self) -> list[str]:
        """The keys that are predicted, of numbers."""
        return [] if self.vector is None else self.vector.keys

    @property
    def images(self) -> list[str]:
        """The keys that are predicted, of pictures."""
        return [] if self.image is None else self.image.keys

    def predict(self, feature: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Vectors (..., numbers) in their own unit and images (..., H, W, C) in [0, 1], by key."""
        vectors = {} if self.vector is None else self.vector(feature)
        images = {} if self.image is None else self.image(feature)
        return {key: symexp(value) for key, value in vectors.items()}, images

    def loss(self, feature: Tensor, observations: Mapping[str, Tensor]) -> Tensor:
        """The sum of the decoders' errors, 0 without any: (B, T, F) -> (B, T)."""
        total = feature.new_zeros(feature.shape[:-1])
        for part in (self.vector, self.image, self.words):
            if part is not None:
                total = total + part.loss(feature, observations)
        return total


def check_keys(spec: EnvSpec, algo: AlgoConfig) -> None:
    """Compare the keys asked for with those the environment shows.

    Raises:
        ConfigError: if a key is not there, is of another kind, or an image has no side to halve
            four times.
    """
    groups: list[tuple[str, Kind, Sequence[str]]] = [
        ("algo.mlp_keys.encoder", "vector", algo.mlp_keys.encoder),
        ("algo.mlp_keys.decoder", "vector", algo.mlp_keys.decoder),
        ("algo.cnn_keys.encoder", "image", algo.cnn_keys.encoder),
        ("algo.cnn_keys.decoder", "image", algo.cnn_keys.decoder),
        ("algo.text_keys.encoder", "text", algo.text_keys.encoder),
        ("algo.text_keys.decoder", "text", algo.text_keys.decoder),
        ("algo.text_keys.sequence", "text", algo.text_keys.sequence),
    ]
    for name, kind, keys in groups:
        for key in keys:
            if key not in spec.observations:
                raise ConfigError(
                    f"{name}={_list(keys)}: the environment has no '{key}'; it has {_shown(spec)}"
                )
            if spec.kind(key) != kind:
                raise ConfigError(
                    f"{name}={_list(keys)}: '{key}' is no {kind}; the environment has {_shown(spec)}"
                )
    for key in [*algo.cnn_keys.encoder, *algo.cnn_keys.decoder]:
        side = spec.observations[key][0]
        if side % SHRINK:
            raise ConfigError(f"env.image_size={side}: must be a multiple of {SHRINK}")
    listed = {key for _, _, keys in groups for key in keys}
    for kind in ("image", "text"):
        unread = [key for key in spec.keys(kind) if key not in listed]
        if unread:
            log.warning(
                "the environment's %s is not read; %s.encoder=%s would read it",
                kind,
                GROUP[kind],
                _list(unread),
            )


def _shown(spec: EnvSpec) -> str:
    """`state (vector: algo.mlp_keys), image (image: algo.cnn_keys)`."""
    kinds = {key: spec.kind(key) for key in spec.observations}
    return ", ".join(f"{key} ({kind}: {GROUP[kind]})" for key, kind in kinds.items())


def _list(keys: Sequence[str]) -> str:
    return f"[{','.join(keys)}]"
