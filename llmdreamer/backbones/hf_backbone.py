"""The base of all backbones made of a transformers model: it copies inputs and adds no training noise."""

from __future__ import annotations

from typing import Any, Self

from torch import Tensor
from transformers import PreTrainedModel

from llmdreamer.backbones.base import Backbone


class HuggingFaceBackbone(Backbone):
    """A backbone that runs a model of transformers, without its table of words."""

    def __init__(self, model: PreTrainedModel, input_rms: float) -> None:
        super().__init__()
        self.model = model
        self.width = int(model.config.hidden_size)
        self.input_rms = input_rms
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the backbone and its adapters. The model itself stays in evaluation mode.

        Models add noise of many kinds in training: dropout, skipped layers, jitter and sampling in
        routers. The world model's training has none, so that a sequence and its steps agree.
        """
        super().train(mode)
        self.model.eval()
        for name, module in self.model.named_modules():
            if ".lora_" in name:
                module.train(mode)
        return self

    def _encode(self, tokens: Tensor, **inputs: Any) -> Tensor:
        """Return the model's last hidden states (N, Q, D) of tokens (N, Q, D).

        Some models change the tensors that they are given in place, so they get copies. What the caller
        keeps, such as a window of tokens, stays as it is.
        """
        copies = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
        hidden: Tensor = self.model(inputs_embeds=tokens.clone(), **copies).last_hidden_state
        return hidden
