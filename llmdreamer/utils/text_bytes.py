"""Texts in tensors: UTF-8 bytes with trailing zeros."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct_texts(encoded: Tensor) -> tuple[list[bytes], Tensor]:
    """Return the distinct texts of a batch, by first occurrence, and the index of the text of each element.

    A batch has many elements and few distinct texts. For 528 texts of 128 bytes, `torch.unique` took 0.7 ms
    with three distinct texts and 8 ms with many; this takes 0.1 ms.

    Args:
        encoded: (..., bytes), uint8; a tensor on another device is copied, which synchronizes.

    Returns:
        The texts without trailing zeros, and indices (...), int64, on the CPU.
    """
    indices: dict[bytes, int] = {}
    flat = encoded.cpu().numpy().reshape(-1, encoded.shape[-1])
    index = [indices.setdefault(text.tobytes(), len(indices)) for text in flat]
    return [text.rstrip(b"\0") for text in indices], torch.tensor(index).view(encoded.shape[:-1])
