"""Which words a text has, as something that the world model can predict."""

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
"""Words are told apart by a checksum of so many values; of ten words, two fall together every third time."""

KNOWN_TEXTS = 65_536
"""Texts whose words are remembered."""


class WordsDecoder(nn.Module):
    """Predicts which words each text has, not in what order.

    What a mission says matters at its end, and is rewarded seldom. Without this nothing else asks the latent
    to keep it.

    Args:
        keys: observations that are texts.
    """

    def __init__(self, features: int, keys: list[str], units: int, layers: int) -> None:
        super().__init__()
        self.keys = keys
        self.mlp = MLP(features, units, layers, BINS * len(keys))

    def forward(self, feature: Tensor) -> Tensor:
        """(..., F) -> logits of each word of each key (..., keys * BINS)."""
        logits: Tensor = self.mlp(feature)
        return logits

    def loss(self, feature: Tensor, observations: Mapping[str, Tensor]) -> Tensor:
        """Cross-entropy, summed over words and keys: (B, T, F), UTF-8 bytes (B, T, bytes) -> (B, T)."""
        there = torch.cat([words_of(observations[key]) for key in self.keys], -1)
        logits = self(feature)
        losses = F.binary_cross_entropy_with_logits(
            logits, there.to(logits.device, logits.dtype), reduction="none"
        )
        return losses.sum(-1)


def words_of(rows: Tensor) -> Tensor:
    """UTF-8 bytes (..., bytes), zeros behind -> which words are there (..., BINS), bool, on the CPU."""
    texts, which = distinct_texts(rows)
    there = torch.zeros(len(texts), BINS, dtype=torch.bool)
    for row, text in zip(there, texts, strict=True):
        row[_bins(text)] = True
    return there[which]


@lru_cache(KNOWN_TEXTS)
def _bins(text: bytes) -> list[int]:
    # Of all letters, not those of English alone; what is no UTF-8 was cut in the midst of a letter.
    words = re.findall(r"\w+", text.decode("utf-8", "ignore").lower())
    return [zlib.crc32(word.encode()) % BINS for word in words]
