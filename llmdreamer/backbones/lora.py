"""LoRA adapters (arXiv:2106.09685) put into a frozen backbone by peft."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from llmdreamer.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import LoraConfig


def add_lora(model: nn.Module, config: LoraConfig, default_targets: list[str]) -> None:
    """Freeze `model` and add adapters to its target layers, which start as the identity.

    Raises:
        ConfigError: if no layer has a target's name.
    """
    targets = config.target_modules if config.target_modules is not None else default_targets
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    names = sorted({name.rsplit(".", 1)[-1] for name in layers})
    unmatched = [target for target in targets if target not in names]
    if unmatched or not targets:
        raise ConfigError(
            f"lora.target_modules {unmatched} match nothing; linear layers: {', '.join(names)}"
        )
    inject_adapter_in_model(
        PeftLoraConfig(
            r=config.r,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=list(targets),
            # GPT-2 keeps its weights transposed.
            fan_in_fan_out=all(
                isinstance(layers[name], Conv1D)
                for name in layers
                if name.rsplit(".", 1)[-1] in targets
            ),
        ),
        model,
    )
