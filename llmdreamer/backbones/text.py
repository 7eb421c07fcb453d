"""Text embeddings and the modules on top of them: one vector for each text, or tokens for the backbone.

Texts are read with the tokenizer and word embeddings of a pretrained backbone, or byte by byte.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from llmdreamer.backbones.base import Backbone
from llmdreamer.backbones.hub import is_reachable
from llmdreamer.config.catalog import shape_of
from llmdreamer.nn.layers import MLP, RMSNorm, init_linear
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import expand_user
from llmdreamer.utils.text_bytes import distinct_texts

if TYPE_CHECKING:
    from llmdreamer.config import Config

log = logging.getLogger(__name__)

BYTE_WIDTH = 32
"""Width of the learned embedding of a byte."""

TOKENIZED_TEXTS = 65_536
"""Texts whose token ids are kept in memory."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


class TextEmbedding(Protocol):
    """Embeds a text as a sequence of vectors (n, width), n >= 1."""

    width: int

    def __call__(self, text: bytes) -> Tensor: ...


class ByteEmbedding(nn.Module):
    """A learned vector for each of the 256 byte values, and one for the empty text."""

    def __init__(self) -> None:
        super().__init__()
        self.width = BYTE_WIDTH
        self.embedding = nn.Embedding(257, BYTE_WIDTH)

    def forward(self, text: bytes) -> Tensor:
        ids = list(text) or [256]
        embedded: Tensor = self.embedding(_upload(ids, self.embedding.weight.device))
        return embedded


class TokenEmbedding(nn.Module):
    """The tokenizer and frozen word embeddings of a language model.

    The embeddings are not saved in our checkpoints: they are loaded again from the model's.

    Args:
        tokenizer: of transformers.
        weight: (vocabulary, width).
    """

    weight: Tensor

    def __init__(self, tokenizer: Tokenizer, weight: Tensor) -> None:
        super().__init__()
        self.width = weight.shape[1]
        self.register_buffer("weight", weight.detach(), persistent=False)
        self.ids = lru_cache(TOKENIZED_TEXTS)(lambda text: _token_ids(tokenizer, text))

    def forward(self, text: bytes) -> Tensor:
        ids = self.ids(text)
        if not ids:
            return self.weight.new_zeros(1, self.width)
        # Scaled to RMS 1, which the layers on top expect: word embeddings are much smaller.
        embedded = self.weight[_upload(ids, self.weight.device)]
        return embedded / self.weight.square().mean().sqrt()


class Tokenizer(Protocol):
    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...


class TextEncoder(nn.Module):
    """Encodes a text as one vector: embeddings, a GRU, the mean of its outputs, and an MLP.

    The GRU makes word order count: a plain mean of embeddings is the same for "red ball, blue box" and
    "blue ball, red box". Equal texts of a batch are encoded once.

    Args:
        text_embedding: embeds a text, as `TextEmbedding`.
        keys: observations that are texts. Each is encoded alone; the MLP combines their vectors.
        units: width of GRU, MLP and output.
    """

    def __init__(self, text_embedding: nn.Module, keys: list[str], units: int) -> None:
        super().__init__()
        self.keys = keys
        self.width = units
        self.text_embedding = text_embedding
        self.gru = nn.GRU(int(text_embedding.width), units, batch_first=True)  # type: ignore[arg-type]
        self.mlp = MLP(units * len(keys), units, 1)

    def forward(self, observations: dict[str, Tensor], leading_dims: int) -> Tensor:
        """Encode the UTF-8 bytes (*leading, bytes) of each key, zero-padded at the end -> (*leading, width).

        The bytes may be on another device than the module.
        """
        vectors = [self._encode(observations[key]) for key in self.keys]
        assert vectors[0].dim() == leading_dims + 1, vectors[0].shape
        embedding: Tensor = self.mlp(torch.cat(vectors, -1))
        return embedding

    def _encode(self, text_bytes: Tensor) -> Tensor:
        # Texts are looked up by their bytes. On the CPU this does not wait for another device.
        texts, text_index = distinct_texts(text_bytes)
        embedded = [self.text_embedding(text) for text in texts]
        padded = nn.utils.rnn.pad_sequence(embedded, batch_first=True)
        device = padded.device
        lengths = _upload([len(vectors) for vectors in embedded], device)
        valid = torch.arange(padded.shape[1], device=device) < lengths[:, None]
        # Autocast gains nothing on a few short texts, and not every device supports it for a GRU.
        with torch.autocast(device.type, enabled=False):
            outputs, _ = self.gru(padded)
        # Padding is at the end, so it does not change the outputs before it. Its own are left out.
        mean = (outputs * valid[..., None]).sum(1) / lengths[:, None]
        return mean[text_index.to(device, non_blocking=True)]


class TextPrompt(nn.Module):
    """Converts the texts at the start of an episode to tokens of the backbone.

    Word embeddings of the backbone's own model enter as in its pretraining. Other embeddings, such as
    learned bytes, go through a linear layer and are scaled to the RMS that the backbone expects.

    Args:
        text_embedding: embeds a text, as `TextEmbedding`.
        keys: observations that are texts. Those of one time step are concatenated in this order.
    """

    def __init__(self, text_embedding: nn.Module, keys: list[str], backbone: Backbone) -> None:
        super().__init__()
        self.keys = keys
        self.text_embedding = text_embedding
        self.input_rms = backbone.input_rms
        width = int(text_embedding.width)  # type: ignore[arg-type]
        self.project: nn.Module | None = None
        if not isinstance(text_embedding, TokenEmbedding) or width != backbone.width:
            norm = RMSNorm(backbone.width)
            nn.init.constant_(norm.weight, backbone.input_rms)
            self.project = nn.Sequential(init_linear(nn.Linear(width, backbone.width)), norm)

    def forward(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Embed the UTF-8 bytes (M, bytes) of each key, zero-padded at the end, on any device.

        Returns:
            tokens (M, P, D), zero-padded at the front, and the length of each prompt (M,), 1 to P, on the
            CPU.
        """
        texts, text_index = zip(
            *(distinct_texts(observations[key]) for key in self.keys), strict=True
        )
        prompts, prompt_index = torch.stack(text_index, -1).unique(dim=0, return_inverse=True)
        embedded = [
            torch.cat(
                [
                    self.text_embedding(key_texts[i])
                    for key_texts, i in zip(texts, prompt, strict=True)
                ]
            )
            for prompt in prompts.tolist()
        ]
        padded = nn.utils.rnn.pad_sequence(embedded, batch_first=True, padding_side="left")
        lengths = torch.tensor([len(vectors) for vectors in embedded])
        # In full precision: prompts are short, and everything after them depends on them.
        with torch.autocast(padded.device.type, enabled=False):
            tokens = padded * self.input_rms if self.project is None else self.project(padded)
        return tokens[prompt_index.to(tokens.device, non_blocking=True)], lengths[prompt_index]


def _upload(numbers: list[int], device: torch.device) -> Tensor:
    """Copy integers to a device without waiting for it."""
    return torch.tensor(numbers).to(device, non_blocking=True)


def make_text_embedding(config: Config, vocabulary: Tensor | None) -> nn.Module:
    """Return the embedding that reads texts: the checkpoint's tokens, or bytes if there are none.

    Args:
        vocabulary: word embeddings of the backbone, (words, width); None if they were not loaded.

    Raises:
        ConfigError: if the model is on the hub, and its tokenizer cannot be loaded.
    """
    if vocabulary is None:
        return ByteEmbedding()
    source = config.backbone.path
    if source is None:
        if config.backbone.factory is not None:
            raise ConfigError(
                "algo.text_keys: no tokenizer; set backbone.path to a directory or hub name that has"
                " the tokenizer"
            )
        source = shape_of(config.backbone.name, config.size).checkpoint
    assert source is not None, "refused by make_backbone"
    return _token_embedding(source, vocabulary)


def _token_embedding(source: str, vocabulary: Tensor) -> nn.Module:
    from transformers import AutoTokenizer

    path = expand_user(source)
    local = path.is_dir()
    # Checked first: without these files transformers silently makes a tokenizer without words.
    if local and not any((path / name).exists() for name in TOKENIZER_FILES):
        log.warning("%s has no tokenizer: texts are read byte by byte", source)
        return ByteEmbedding()
    offline = local or not is_reachable()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            path if local else source, local_files_only=offline, trust_remote_code=False
        )
    # A damaged or missing tokenizer raises different errors depending on its kind.
    except (OSError, ValueError, TypeError, AttributeError, ImportError) as error:
        if local or not offline:
            raise ConfigError(
                f"backbone.path={source}: its tokenizer cannot be read; replace its tokenizer files"
            ) from error
        raise ConfigError(
            f"algo.text_keys: the tokenizer of {source} is not in the local cache, and the hub is"
            " unreachable; set backbone.path to a local directory that has it"
        ) from error
    if len(tokenizer) > vocabulary.shape[0]:
        raise ConfigError(
            f"backbone.path={source}: its tokenizer has {len(tokenizer)} tokens, its model embeds"
            f" {vocabulary.shape[0]}; use the tokenizer of the same model"
        )
    return TokenEmbedding(tokenizer, vocabulary)


def _token_ids(tokenizer: Tokenizer, text: bytes) -> list[int]:
    """Return the token ids of a text; an empty list for an empty text."""
    return tokenizer.encode(text.decode("utf-8", "ignore"), add_special_tokens=False)
