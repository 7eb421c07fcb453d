"""Reads a text as the backbone would, or byte by byte: one vector for each text."""

from __future__ import annotations

import logging
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from llmdreamer.backbones.base import Backbone
from llmdreamer.backbones.hub import is_reachable
from llmdreamer.config.catalog import shape_of
from llmdreamer.nn.layers import MLP, RMSNorm, init_linear
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.text_bytes import distinct_texts

if TYPE_CHECKING:
    from llmdreamer.config import Config

log = logging.getLogger(__name__)

BYTE_WIDTH = 32
"""Numbers in the learned embedding of a byte."""

KNOWN_TEXTS = 65_536
"""Texts whose tokens are remembered."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


class Table(Protocol):
    """Embeds a text: its parts (n, width), at least one."""

    width: int

    def __call__(self, text: bytes) -> Tensor: ...


class ByteTable(nn.Module):
    """A learned vector for each of the 256 bytes, and one for the empty text."""

    def __init__(self) -> None:
        super().__init__()
        self.width = BYTE_WIDTH
        self.embedding = nn.Embedding(257, BYTE_WIDTH)

    def forward(self, text: bytes) -> Tensor:
        ids = list(text) or [256]
        embedded: Tensor = self.embedding(torch.tensor(ids, device=self.embedding.weight.device))
        return embedded


class TokenTable(nn.Module):
    """A language model's own tokens and word embeddings, frozen.

    The table is no part of a checkpoint of ours: it is read again from the model's.

    Args:
        tokenizer: of transformers.
        weight: (vocabulary, width).
    """

    weight: Tensor

    def __init__(self, tokenizer: Tokenizer, weight: Tensor) -> None:
        super().__init__()
        self.width = weight.shape[1]
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.ids = lru_cache(KNOWN_TEXTS)(lambda text: _ids(tokenizer, text))

    def forward(self, text: bytes) -> Tensor:
        ids = self.ids(text)
        if not ids:
            return self.weight.new_zeros(1, self.width)
        # The unit that the GRU behind it is used to: word embeddings are much smaller than 1.
        embedded = self.weight[torch.tensor(ids, device=self.weight.device)]
        return embedded / self.weight.square().mean().sqrt()


class Tokenizer(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class TextEncoder(nn.Module):
    """Parts of a text through a GRU, whose outputs' mean goes through an MLP.

    A plain mean of embeddings would not tell "red ball, blue box" from "blue ball, red box": the GRU
    is what sees order. Equal texts of a batch are encoded once.

    Args:
        table: what a text's parts are.
        keys: observations that are texts; each is read alone, their vectors are summed up in the MLP.
        units: width of GRU, MLP and output.
    """

    def __init__(self, table: nn.Module, keys: list[str], units: int) -> None:
        super().__init__()
        self.keys = keys
        self.width = units
        self.table = table
        self.gru = nn.GRU(int(table.width), units, batch_first=True)  # type: ignore[arg-type]
        self.mlp = MLP(units * len(keys), units, 1)

    def forward(self, observations: dict[str, Tensor], lead: int) -> Tensor:
        """UTF-8 bytes (*lead dims, bytes) of each key, zeros behind -> (*lead dims, width).

        They may be on another device than the module.
        """
        vectors = [self._read(observations[key]) for key in self.keys]
        assert vectors[0].dim() == lead + 1, vectors[0].shape
        embedding: Tensor = self.mlp(torch.cat(vectors, -1))
        return embedding

    def _read(self, rows: Tensor) -> Tensor:
        # Looked up by their bytes, so a batch's texts are best left on the CPU: no device waits for them.
        texts, which = distinct_texts(rows)
        parts = [self.table(text) for text in texts]
        padded = nn.utils.rnn.pad_sequence(parts, batch_first=True)
        device = padded.device
        lengths = torch.tensor([len(part) for part in parts], device=device)
        counted = torch.arange(padded.shape[1], device=device) < lengths[:, None]
        # Autocast has nothing to win on a few short texts, and not every device's GRU knows it.
        with torch.autocast(device.type, enabled=False):
            outputs, _ = self.gru(padded)
        # Padding stands behind the text, so it changes no output within it; those behind are left out.
        mean = (outputs * counted[..., None]).sum(1) / lengths[:, None]
        return mean[which.to(device)]


class TextPrompt(nn.Module):
    """Texts as tokens of a backbone: what a model is told before it lives.

    Word vectors of the backbone's own model enter as they did when it was trained. Others, as learned
    bytes, go through a layer and are scaled to what the backbone is used to.

    Args:
        table: what a text's parts are.
        keys: observations that are texts; a row's are read one after the other.
    """

    def __init__(self, table: nn.Module, keys: list[str], backbone: Backbone) -> None:
        super().__init__()
        self.keys = keys
        self.table = table
        self.input_rms = backbone.input_rms
        width = int(table.width)  # type: ignore[arg-type]
        self.project: nn.Module | None = None
        if not isinstance(table, TokenTable) or width != backbone.width:
            norm = RMSNorm(backbone.width)
            nn.init.constant_(norm.weight, backbone.input_rms)
            self.project = nn.Sequential(init_linear(nn.Linear(width, backbone.width)), norm)

    def forward(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """UTF-8 bytes (M, bytes) of each key, zeros behind, on any device.

        Returns:
            tokens (M, P, D), zeros in front of the shorter, and how many are a row's (M,), 1 to P.
        """
        texts, which = zip(*(distinct_texts(observations[key]) for key in self.keys), strict=True)
        rows, which_row = torch.stack(which, -1).unique(dim=0, return_inverse=True)
        told = [
            torch.cat([self.table(of[i]) for of, i in zip(texts, row, strict=True)])
            for row in rows.tolist()
        ]
        padded = nn.utils.rnn.pad_sequence(told, batch_first=True, padding_side="left")
        lengths = torch.tensor([len(parts) for parts in told])
        # In full precision: it is little, and what the memory begins with.
        with torch.autocast(padded.device.type, enabled=False):
            tokens = padded * self.input_rms if self.project is None else self.project(padded)
        which_row = which_row.to(padded.device)
        return tokens[which_row], lengths.to(padded.device)[which_row]


def make_table(config: Config, vocabulary: Tensor | None) -> nn.Module:
    """What texts are read with: the checkpoint's tokens, or bytes where there are none.

    Args:
        vocabulary: of the backbone, (words, width); None if it was drawn, not loaded.

    Raises:
        ConfigError: if the model is on the hub, and its tokenizer cannot be had.
    """
    if vocabulary is None:
        return ByteTable()
    source = config.backbone.path
    if source is None:
        if config.backbone.factory is not None:
            raise ConfigError("algo.text_keys: set backbone.path to where the tokenizer is")
        source = shape_of(config.backbone.name, config.size).checkpoint
    assert source is not None, "make_backbone has refused it"
    return _token_table(source, vocabulary)


def _token_table(source: str, vocabulary: Tensor) -> nn.Module:
    from transformers import AutoTokenizer

    path = Path(source).expanduser()
    local = path.is_dir()
    # Asked first: without these files transformers makes a tokenizer of no words, and says nothing.
    if local and not any((path / name).exists() for name in TOKENIZER_FILES):
        log.warning("%s has no tokenizer: texts are read byte by byte", source)
        return ByteTable()
    offline = local or not is_reachable()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path if local else source, local_files_only=offline, trust_remote_code=False
        )
    # What a damaged or missing tokenizer raises depends on its kind.
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        if local or not offline:
            raise ConfigError(f"backbone.path={source}: its tokenizer cannot be read") from error
        raise ConfigError(
            f"algo.text_keys needs the tokenizer of {source}, which is not in the cache and the "
            "hub is unreachable; point backbone.path at a local directory that has it"
        ) from error
    if len(tokenizer) > vocabulary.shape[0]:
        raise ConfigError(
            f"{source}: its tokenizer has {len(tokenizer)} tokens, its model embeds "
            f"{vocabulary.shape[0]}; they are not of one model"
        )
    return TokenTable(tokenizer, vocabulary)


def _ids(tokenizer: Tokenizer, text: bytes) -> list[int]:
    """Tokens of a text; none of an empty one."""
    return tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=False)
