"""Predicts the words of texts, hashed into bins."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llmdreamer.nn.layers import MLP
from llmdreamer.utils.text_bytes import distinct_texts

BINS = 128
"""Words are hashed into this many bins. With ten words, the chance of a collision is about 1 in 3."""

CACHED_TEXTS = 65_536
"""Number of texts whose bins are cached."""


class WordsDecoder(nn.Module):
    """Predicts which words each text has, regardless of their order.

    A mission's words matter at the end of its episode, and rewards are rare. Without this loss, nothing else
    makes the latent keep them.

    Args:
        keys: keys of observations that are texts.
    """

    def __init__(self, features: int, keys: list[str], units: int, layers: int) -> None:
        super().__init__()
        self.keys = keys
        self.mlp = MLP(features, units, layers, BINS * len(keys))

    def forward(self, feature: Tensor) -> Tensor:
        """(..., F) -> logits of each bin of each key, (..., keys * BINS)."""
        logits: Tensor = self.mlp(feature)
        return logits

    def loss(self, feature: Tensor, observations: Mapping[str, Tensor]) -> Tensor:
        """Binary cross-entropy, summed over bins and keys: (B, T, F), UTF-8 (B, T, bytes) -> (B, T)."""
        present = torch.cat([word_bins(observations[key]) for key in self.keys], -1)
        logits = self(feature)
        losses = F.binary_cross_entropy_with_logits(
            logits, present.to(logits.device, logits.dtype), reduction="none"
        )
        return losses.sum(-1)


def word_bins(encoded: Tensor) -> Tensor:
    """Mark the bins of each text's words.

    Args:
        encoded: (..., bytes), UTF-8, padded with zeros.

    Returns:
        (..., BINS), bool, on the CPU.
    """
    texts, text_index = distinct_texts(encoded)
    present = torch.zeros(len(texts), BINS, dtype=torch.bool)
    for bins, text in zip(present, texts, strict=True):
        bins[_hash_words(text)] = True
    return present[text_index]


@lru_cache(CACHED_TEXTS)
def _hash_words(text: bytes) -> list[int]:
    # \w matches the letters of every language. Bytes that are not UTF-8 are a letter cut in two: ignored.
    words = re.findall(r"\w+", text.decode("utf-8", "ignore").lower())
    return [zlib.crc32(word.encode()) % BINS for word in words]
