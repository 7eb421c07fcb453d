"""Any causal model of transformers as a backbone: the window of the last tokens, encoded anew each time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from llmdreamer.backbones.base import Backbone
from llmdreamer.utils.errors import ConfigError


@dataclass(frozen=True)
class Observed:
    """What `observe` leaves behind for `select`."""

    tokens: Tensor  # (B, T, D)
    begin: Tensor  # (B, T), the first row of each row's window


@dataclass(frozen=True)
class Recent:
    """The last tokens of N streams, oldest first."""

    tokens: Tensor  # (N, context, D); beyond `length`, whatever was there
    length: Tensor  # (N,), at most context


class WindowBackbone(Backbone):
    """A model that needs nothing but to be causal: no cache, no mask, no positions of ours.

    A window begins with the model's own first position and is filled up behind its last token, where a
    causal model cannot look. So unlike padding in front, it asks nothing of how a model treats masks.
    Its price: a step encodes a whole window, and so does every training row whose episode is older
    than `context`; younger rows of one episode share one pass.
    """

    def __init__(self, model: PreTrainedModel, context: int, input_rms: float) -> None:
        super().__init__()
        self.model = model
        self.width = int(model.config.hidden_size)
        self.context = context
        self.input_rms = input_rms

    def observe(self, tokens: Tensor, is_first: Tensor) -> tuple[Tensor, Observed]:
        batch, time = is_first.shape
        row = torch.arange(time, device=tokens.device)
        start = torch.where(is_first, row, 0).cummax(1).values
        begin = torch.maximum(start, row - self.context + 1)
        # Windows with the same first token are one: what follows a row does not change it.
        sequence = torch.arange(batch, device=tokens.device).unsqueeze(1)
        windows, window = (sequence * time + begin).unique(return_inverse=True)
        offset = row - begin
        column = torch.arange(int(offset.max()) + 1, device=tokens.device)
        source = (windows % time).unsqueeze(1) + column
        source = source.clamp(max=time - 1) + (windows // time * time).unsqueeze(1)
        encoded = self._encode(tokens.flatten(0, 1)[source])
        return encoded[window, offset], Observed(tokens.detach(), begin)

    def select(self, caches: Observed, indices: Tensor, steps: int | None = None) -> Recent:
        row = torch.arange(indices.shape[0], device=indices.device).unsqueeze(1)
        begin = caches.begin[row, indices]
        column = torch.arange(self.context, device=indices.device)
        source = (begin.unsqueeze(-1) + column).clamp(max=caches.tokens.shape[1] - 1)
        tokens = caches.tokens[row.unsqueeze(-1), source].flatten(0, 1)
        return Recent(tokens, (indices - begin + 1).flatten())

    def initial_cache(self, streams: int) -> Recent:
        like = next(self.model.parameters())
        return Recent(
            torch.zeros(streams, self.context, self.width, device=like.device),
            torch.zeros(streams, dtype=torch.int64, device=like.device),
        )

    @torch.no_grad()
    def step(self, token: Tensor, cache: Recent) -> tuple[Tensor, Recent]:
        full = (cache.length == self.context)[:, None, None]
        tokens = torch.where(full, cache.tokens.roll(-1, 1), cache.tokens)
        stream = torch.arange(token.shape[0], device=token.device)
        last = cache.length.clamp(max=self.context - 1)
        tokens[stream, last] = token.to(tokens.dtype)
        encoded = self._encode(tokens[:, : int(last.max()) + 1])
        return encoded[stream, last], Recent(tokens, last + 1)

    def reset(self, cache: Recent, mask: Tensor) -> Recent:
        return Recent(cache.tokens, cache.length.masked_fill(mask, 0))

    def replace(self, cache: Recent, other: Recent, mask: Tensor) -> Recent:
        tokens = torch.where(mask[:, None, None], other.tokens, cache.tokens)
        return Recent(tokens, torch.where(mask, other.length, cache.length))

    def cache_to_dict(self, cache: Recent) -> dict[str, Tensor]:
        return {"tokens": cache.tokens, "length": cache.length}

    def cache_from_dict(self, tensors: dict[str, Tensor]) -> Recent:
        return Recent(tensors["tokens"], tensors["length"])

    def _encode(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.model(inputs_embeds=tokens, use_cache=False).last_hidden_state
        return hidden


def make_window(model: PreTrainedModel, context: int, input_rms: float) -> WindowBackbone:
    """The backbone of any causal model that takes vectors for words.

    Raises:
        ConfigError: if the model is none, or has not that many positions.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and context > positions:
        raise ConfigError(
            f"algo.world_model.hf_model.seq_len={context}: this {model.config.model_type} has"
            f" {positions} positions"
        )
    _check_causal(model)
    return WindowBackbone(model, context, input_rms)


@torch.no_grad()
def _check_causal(model: PreTrainedModel) -> None:
    """Try whether a model takes vectors for words, and whether what follows a word leaves it alone.

    Raises:
        ConfigError: if not.
    """
    kind, width = model.config.model_type, int(model.config.hidden_size)
    # Fixed numbers: building a backbone draws from the generator for its weights only.
    token = torch.arange(3 * width, dtype=torch.float32).view(1, 3, width).cos()
    tokens = torch.cat([token, token])
    tokens[1, -1] = token[0, 0].neg()
    training = model.training
    try:
        hidden = model.eval()(inputs_embeds=tokens, use_cache=False).last_hidden_state
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"a {kind} model cannot be a backbone: {reason}") from error
    model.train(training)
    if hidden.shape != tokens.shape:
        raise ConfigError(
            f"a {kind} model cannot be a backbone: it turns {width} numbers a token into"
            f" {hidden.shape[-1]}"
        )
    if not torch.allclose(hidden[0, :-1], hidden[1, :-1], atol=1e-4):
        raise ConfigError(f"a {kind} model cannot be a backbone: it is not causal")
