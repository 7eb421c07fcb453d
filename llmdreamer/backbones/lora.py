"""LoRA adapters (arXiv:2106.09685) in a frozen backbone, by peft."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from llmdreamer.backbones.base import Backbone
from llmdreamer.config.catalog import LORA_TARGETS
from llmdreamer.utils.errors import ConfigError, first_line

if TYPE_CHECKING:
    from llmdreamer.config import LoraConfig


def add_lora(model: PreTrainedModel, config: LoraConfig) -> None:
    """Freeze `model` and add adapters to its target layers. At first they change no output.

    Raises:
        ConfigError: if no layer has a target's name, or peft cannot adapt it.
    """
    targets = _target_modules(model, config)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    names = sorted({name.rsplit(".", 1)[-1] for name in layers})
    unmatched = [target for target in targets if target not in names]
    if unmatched or not targets:
        raise ConfigError(
            f"lora.target_modules={unmatched}: no such linear layers; choose from {', '.join(names)}"
        )
    try:
        inject_adapter_in_model(
            PeftLoraConfig(
                r=config.r,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                target_modules=targets,
                # GPT-2 stores its weights transposed.
                fan_in_fan_out=all(
                    isinstance(layers[name], Conv1D)
                    for name in layers
                    if name.rsplit(".", 1)[-1] in targets
                ),
            ),
            model,
        )
    except ValueError as error:  # for example Mamba's out_proj
        reason = first_line(error)
        raise ConfigError(f"lora.target_modules={targets}: {reason}") from error
    for layer in model.modules():
        if isinstance(layer, LoraLayer) and config.dropout > 0:
            layer.lora_dropout.update(
                {name: GradientOnlyDropout(config.dropout) for name in layer.lora_dropout}
            )


class GradientOnlyDropout(nn.Dropout):
    """Dropout that is active only with gradient: not in acting and imagination.

    Otherwise each imagined step would drop other inputs, and the policy that acts would differ from
    the one that is evaluated.
    """

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if torch.is_grad_enabled() else input


@torch.enable_grad()  # the caller may have disabled gradients
def check_adapters(backbone: Backbone) -> None:
    """Check that a gradient reaches every adapter. Some models read a layer's weight without calling it.

    Raises:
        ConfigError: names the layers whose adapters would never be trained.
    """
    device = next(backbone.parameters()).device
    # Fixed numbers, because building a backbone may draw random numbers for its weights only.
    tokens = torch.arange(4 * backbone.width, device=device, dtype=torch.float32).cos()
    training = backbone.training
    is_first = torch.zeros(1, 4, dtype=torch.bool, device=device)
    deter, _ = backbone.eval().observe(tokens.view(1, 4, -1), is_first)
    # Not a plain sum: the sum of a LayerNorm's outputs is constant.
    loss = (deter * tokens.add(1).cos().view_as(deter)).sum()
    if loss.requires_grad:  # not if the model calls none of the adapters
        loss.backward()
    backbone.train(training)
    # B starts at zero, so at first A has no gradient: check B only.
    untrained = {
        name.split(".lora_")[0].rsplit(".", 1)[-1]
        for name, param in backbone.named_parameters()
        if ".lora_B." in name and (param.grad is None or not param.grad.any())
    }
    backbone.zero_grad(set_to_none=True)
    if untrained:
        raise ConfigError(
            f"lora.target_modules={sorted(untrained)}: no gradient reaches them in this model; remove"
            " them"
        )


@torch.no_grad()
def adapter_norms(backbone: nn.Module) -> dict[str, float]:
    """Return the relative change by each layer's adapter: |scaling * B A| / |W|, by layer name.

    Frobenius norms. 0 at the start, when B is 0. Empty without adapters.
    """
    norms = {}
    for name, layer in backbone.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        weight = _adapted_weight(layer).float().norm()
        for adapter in layer.active_adapters:
            norms[name.removeprefix("model.")] = float(_change_norm(layer, adapter) / weight)
    return norms


@contextmanager
def merged(backbone: nn.Module) -> Iterator[None]:
    """Merge each adapter into its weight for the duration: same outputs at the speed of plain layers.

    For passes without gradient; no gradient reaches merged adapters. On exit the original weight tensors
    are restored, so nothing drifts, and graphs from before can still be backpropagated.
    """
    originals = []
    for layer in backbone.modules():
        if isinstance(layer, LoraLayer):
            weight = _adapted_weight(layer)
            originals.append((layer, weight, weight.data))
    try:
        with torch.no_grad():
            for layer, weight, _ in originals:
                for adapter in layer.active_adapters:
                    weight.data = weight.data + cast(Any, layer).get_delta_weight(adapter)
                    layer.merged_adapters.append(adapter)
        yield
    finally:
        for layer, weight, original in originals:
            weight.data = original
            layer.merged_adapters.clear()


def _change_norm(layer: LoraLayer, adapter: str) -> Tensor:
    """Return the Frobenius norm of what an adapter adds to its weight."""
    if isinstance(layer, ParamWrapper):  # each expert has its own B and A
        return cast(Tensor, layer.get_delta_weight(adapter)).float().norm()
    a, b = (cast(Tensor, side[adapter].weight).float() for side in (layer.lora_A, layer.lora_B))
    # |BA|² = sum(BᵀB * AAᵀ): matrices of r x r instead of a whole weight.
    return cast(Tensor, ((b.T @ b) * (a @ a.T)).sum().clamp(min=0).sqrt() * layer.scaling[adapter])


def _adapted_weight(layer: LoraLayer) -> Tensor:
    """Return the weight that an adapter changes. peft adapts the experts of a mixture as one parameter."""
    if isinstance(layer, ParamWrapper):
        return cast(Tensor, layer.get_param())
    return cast(Tensor, layer.get_base_layer().weight)


def _target_modules(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    if config.target_modules is not None:
        return list(config.target_modules)
    kind = model.config.model_type
    default = LORA_TARGETS.get(kind, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(kind))
    if not isinstance(default, list):
        raise ConfigError(
            f"lora.target_modules=null: {kind} has no default; name the layers to adapt"
        )
    return default
