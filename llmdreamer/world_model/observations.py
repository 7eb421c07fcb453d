"""Encodes and decodes whole observations, and checks that the configured keys exist."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from llmdreamer.backbones.text import TextEncoder
from llmdreamer.nn.conv import DOWNSCALE, ImageDecoder, ImageEncoder
from llmdreamer.nn.layers import VectorDecoder, VectorEncoder
from llmdreamer.types import EnvSpec, Kind
from llmdreamer.utils.errors import ConfigError
from llmdreamer.world_model.words import WordsDecoder

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig
    from llmdreamer.config.schema import KeysConfig, TextKeysConfig

    Keys = TypeVar("Keys", KeysConfig, TextKeysConfig)

log = logging.getLogger(__name__)

KEY_GROUPS: dict[Kind, str] = {
    "vector": "algo.mlp_keys",
    "image": "algo.cnn_keys",
    "text": "algo.text_keys",
}
"""The configuration group that lists the keys of each kind."""


class ObservationEncoder(nn.Module):
    """Encodes vectors, images and texts, and concatenates their embeddings: E = `width` numbers."""

    def __init__(self, spec: EnvSpec, algo: AlgoConfig, text_embedding: nn.Module | None) -> None:
        super().__init__()
        units, shapes = algo.dense_units, spec.observations
        self.width = 0
        self.vector = self.image = self.text = None
        if algo.mlp_keys.encoder:
            keys, bins = algo.mlp_keys.encoder, algo.world_model.vector_bins
            self.vector = VectorEncoder(shapes, keys, units, algo.mlp_layers, bins)
            self.width += units
        if algo.cnn_keys.encoder:
            self.image = ImageEncoder(shapes, algo.cnn_keys.encoder, algo.cnn_depth)
            self.width += self.image.width
        if algo.text_keys.encoder:
            assert text_embedding is not None, "texts need a text embedding"
            self.text = TextEncoder(text_embedding, algo.text_keys.encoder, units)
            self.width += self.text.width

    def forward(self, observations: Mapping[str, Tensor], lead: int) -> Tensor:
        """(*lead dims, ...) of each key, vectors encoded by the `Standardizer` -> (*lead dims, E)."""
        embeddings = [] if self.vector is None else [self.vector(observations)]
        encoders = [e for e in (self.image, self.text) if e is not None]
        return torch.cat([*embeddings, *(e(observations, lead) for e in encoders)], -1)


class ObservationDecoder(nn.Module):
    """Predicts the observation from the feature: vectors, images, and the words of texts."""

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
        """The keys of the vectors that are predicted."""
        return [] if self.vector is None else self.vector.keys

    @property
    def images(self) -> list[str]:
        """The keys of the images that are predicted."""
        return [] if self.image is None else self.image.keys

    def predict(self, feature: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Predict by key: vectors (..., size), see `Standardizer`, and images (..., H, W, C) in [0, 1]."""
        vectors = {} if self.vector is None else self.vector(feature)
        images = {} if self.image is None else self.image(feature)
        return vectors, images

    def loss(self, feature: Tensor, observations: Mapping[str, Tensor]) -> Tensor:
        """The sum of the decoders' losses, 0 if there is none: (B, T, F) -> (B, T)."""
        total = feature.new_zeros(feature.shape[:-1])
        for decoder in (self.vector, self.image, self.words):
            if decoder is not None:
                total = total + decoder.loss(feature, observations)
        return total


ALL = "*"
"""In a list of keys: all observations of the kind."""


def expand_keys(algo: AlgoConfig, spec: EnvSpec) -> AlgoConfig:
    """Return the configuration with each `*` replaced by the keys that the environment has.

    Raises:
        ConfigError: if then no observation is read.
    """

    def expand(group: Keys, kind: Kind) -> Keys:
        lists = {field.name: getattr(group, field.name) for field in fields(group)}
        return replace(group, **{name: _expand(keys, kind, spec) for name, keys in lists.items()})

    mlp, cnn = expand(algo.mlp_keys, "vector"), expand(algo.cnn_keys, "image")
    text = expand(algo.text_keys, "text")
    if not (mlp.encoder or cnn.encoder or text.encoder):
        raise ConfigError(f"no observation is read; the environment has {_describe(spec)}")
    return replace(algo, mlp_keys=mlp, cnn_keys=cnn, text_keys=text)


def _expand(keys: Sequence[str], kind: Kind, spec: EnvSpec) -> list[str]:
    lists = (spec.keys(kind) if key == ALL else [key] for key in keys)
    return list(dict.fromkeys(key for keys in lists for key in keys))


def check_keys(spec: EnvSpec, algo: AlgoConfig) -> None:
    """Compare the configured keys with the observations of the environment.

    Images and texts that no key names get a warning.

    Raises:
        ConfigError: if a key does not exist or is of another kind, or the side of an image cannot be
            halved four times.
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
                    f"{name}={_format_list(keys)}: the environment has no '{key}'; it has {_describe(spec)}"
                )
            if spec.kind(key) != kind:
                raise ConfigError(
                    f"{name}={_format_list(keys)}: '{key}' is of kind {spec.kind(key)}, not {kind};"
                    f" the environment has {_describe(spec)}"
                )
    for key in [*algo.cnn_keys.encoder, *algo.cnn_keys.decoder]:
        side = spec.observations[key][0]
        if side % DOWNSCALE:
            raise ConfigError(f"env.image_size={side}: must be a multiple of {DOWNSCALE}")
    listed = {key for _, _, keys in groups for key in keys}
    for kind in ("image", "text"):
        unread = [key for key in spec.keys(kind) if key not in listed]
        if unread:
            log.warning(
                "the environment's %s is not read; set %s.encoder=%s to read it",
                kind,
                KEY_GROUPS[kind],
                _format_list(unread),
            )


def _describe(spec: EnvSpec) -> str:
    """List the observations: `state (vector: algo.mlp_keys), image (image: algo.cnn_keys)`."""
    kinds = {key: spec.kind(key) for key in spec.observations}
    return ", ".join(f"{key} ({kind}: {KEY_GROUPS[kind]})" for key, kind in kinds.items())


def _format_list(keys: Sequence[str]) -> str:
    return f"[{','.join(keys)}]"
