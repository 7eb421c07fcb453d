"""Texts in tensors: UTF-8 bytes, zeros behind."""

from __future__ import annotations

import torch
from torch import Tensor


def distinct(rows: Tensor) -> tuple[list[bytes], Tensor]:
    """The texts of a batch, each once, in the order they come, and which of them each row is.

    A batch has many rows and few texts. `torch.unique` compares rows byte by byte: 528 rows of 128 bytes took
    it 0.7 ms with three texts, 8 with many; this takes 0.1.

    Args:
        rows: (..., bytes), uint8; from another device they are waited for.

    Returns:
        The texts without their zeros, and (...) of int64 on the CPU.
    """
    numbers: dict[bytes, int] = {}
    flat = rows.cpu().numpy().reshape(-1, rows.shape[-1])
    which = [numbers.setdefault(row.tobytes(), len(numbers)) for row in flat]
    return [text.rstrip(b"\0") for text in numbers], torch.tensor(which).view(rows.shape[:-1])
