"""LoRA adapters (arXiv:2106.09685) put into a frozen backbone by peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmdreamer.backbones.base import Backbone
from llmdreamer.config.catalog import LORA_TARGETS
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import LoraConfig


def add_lora(model: PreTrainedModel, config: LoraConfig) -> None:
    """Freeze `model` and add adapters to its target layers, which start as the identity.

    Raises:
        ConfigError: if no layer has a target's name, or peft will not adapt it.
    """
    targets = _targets(model, config)
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
    try:
        inject_adapter_in_model(
            PeftLoraConfig(
                r=config.r,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                target_modules=targets,
                # GPT-2 keeps its weights transposed.
                fan_in_fan_out=all(
                    isinstance(layers[name], Conv1D)
                    for name in layers
                    if name.rsplit(".", 1)[-1] in targets
                ),
            ),
            model,
        )
    except ValueError as error:  # out_proj of Mamba, among others
        reason = str(error).splitlines()[0]
        raise ConfigError(f"lora.target_modules {targets}: {reason}") from error
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and config.dropout > 0:
            layer.lora_dropout.update(
                {name: LearningDropout(config.dropout) for name in layer.lora_dropout}
            )


class LearningDropout(nn.Dropout):
    """Dropout in what is learned from; acting and dreaming, which take no gradient, hear everything.

    Else each step of a dream would drop other inputs, and no policy acted with be the one evaluated.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if torch.is_grad_enabled() else input


@torch.enable_grad()  # whoever builds a backbone to act with it may have switched gradients off
def check_adapters(backbone: Backbone) -> None:
    """Try whether a gradient reaches every adapter; some models read a layer's weight past them.

    Raises:
        ConfigError: naming the layers whose adapters would never train.
    """
    device = next(backbone.parameters()).device
    # Fixed numbers: building a backbone draws from the generator for its weights only.
    tokens = torch.arange(4 * backbone.width, device=device, dtype=torch.float32).cos()
    training = backbone.training
    none = torch.zeros(1, 4, dtype=torch.bool, device=device)
    deter, _ = backbone.eval().observe(tokens.view(1, 4, -1), none)
    # No plain sum: of what a LayerNorm puts out, that is a constant.
    (deter * tokens.add(1).cos().view_as(deter)).sum().backward()
    backbone.train(training)
    # A is behind B, which starts at zero: at first only B has a gradient other than zero.
    dead = {
        name.split(".lora_")[0].rsplit(".", 1)[-1]
        for name, param in backbone.named_parameters()
        if ".lora_B." in name and (param.grad is None or not param.grad.any())
    }
    backbone.zero_grad(set_to_none=True)
    if dead:
        raise ConfigError(
            f"lora.target_modules {sorted(dead)} get no gradient in this model: leave them out"
        )


@torch.no_grad()
def adapter_norms(backbone: nn.Module) -> dict[str, float]:
    """How large the change is that adapters make: by layer, the norm of scaling * B A over that of W.

    Frobenius norms; 0 at the start, where B is. Empty without adapters.
    """
    norms = {}
    for name, layer in backbone.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        weight = cast(Tensor, layer.get_base_layer().weight)
        for adapter in layer.active_adapters:
            a, b = (
                cast(Tensor, side[adapter].weight).float() for side in (layer.lora_A, layer.lora_B)
            )
            # |BA|² = sum(BᵀB * AAᵀ): r x r numbers in the place of a whole weight.
            change = ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt() * layer.scaling[adapter]
            norms[name.removeprefix("model.")] = float(change / weight.float().norm())
    return norms


@contextmanager
def merged(backbone: nn.Module) -> Iterator[None]:
    """Have each adapter added to the weight it adapts while this lasts: same outputs, plain layers' speed.

    For passes without gradient: none reaches the adapters meanwhile. Afterwards the frozen weights are the
    very tensors that they were, so nothing drifts, and a graph from before can still be gone back through.
    """
    kept = []
    for layer in backbone.modules():
        if isinstance(layer, LoraLayer):
            weight = cast(Tensor, layer.get_base_layer().weight)
            kept.append((layer, weight, weight.data))
    try:
        with torch.no_grad():
            for layer, weight, _ in kept:
                for adapter in layer.active_adapters:
                    weight.data = weight.data + cast(Any, layer).get_delta_weight(adapter)
                    layer.merged_adapters.append(adapter)
        yield
    finally:
        for layer, weight, frozen in kept:
            weight.data = frozen
            layer.merged_adapters.clear()


def _targets(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    if config.target_modules is not None:
        return list(config.target_modules)
    kind = model.config.model_type
    usual = LORA_TARGETS.get(kind, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind))
    if not isinstance(usual, list):
        raise ConfigError(
            f"lora.target_modules=null: {kind} has no usual ones; name the layers to adapt"
        )
    return usual
