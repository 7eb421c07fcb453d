"""Builds a backbone from a transformers model: load it, drop its word embeddings, add LoRA, wrap it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.logging import disable_propagation

from llmdreamer.backbones.attention import make_attention, supports_explicit_mask
from llmdreamer.backbones.hf_backbone import HuggingFaceBackbone
from llmdreamer.backbones.model_loading import load_pretrained, model_from_scratch, reason
from llmdreamer.backbones.state_space import Mixer, StateSpaceBackbone
from llmdreamer.backbones.window import make_window
from llmdreamer.config.catalog import GENERIC_HF, SCAN_FUNCTIONS, family_of, shape_of
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import Config

POSITIONS_KEY = "max_position_embeddings"
"""Size of a position table. A checkpoint has its own; from scratch it is as large as the context needs."""


def make_huggingface(config: Config) -> HuggingFaceBackbone:
    """Return the backbone of a transformers model.

    Raises:
        ConfigError: if the model cannot be loaded, or does not support the configuration.
    """
    # With the CI environment variable set, transformers passes its log lines on to the root logger
    # too, so each would appear twice.
    disable_propagation()
    model, input_rms = _load_model(config)
    hf = config.algo.world_model.hf_model
    texts = config.algo.text_keys
    words = model.get_input_embeddings() if texts.encoder or texts.sequence else None
    kind = model.config.model_type
    try:
        # Tokens are vectors, so the model itself never looks up a word.
        model.set_input_embeddings(None)  # type: ignore[arg-type]
    except Exception as error:  # any of 200 models
        raise ConfigError(f"a {kind} model cannot be a backbone: {reason(error)}") from error
    if hf.peft:
        from llmdreamer.backbones.lora import add_lora, check_adapters  # importing peft is slow

        add_lora(model, config.lora)
    backbone: HuggingFaceBackbone
    mixer = _mixer(kind)
    if mixer is not None:
        backbone = StateSpaceBackbone(model, mixer, input_rms)
    elif supports_explicit_mask(model.config):
        backbone = make_attention(model, hf.seq_len, input_rms)
    else:
        backbone = make_window(model, hf.seq_len, input_rms)
    path = config.backbone.path
    _check_runs(backbone, f"backbone.config: {kind}" if path is None else f"backbone.path={path}")
    if hf.from_pretrained and isinstance(words, nn.Embedding):
        backbone.vocabulary = words.weight.detach()
    if hf.peft:
        check_adapters(backbone)
    return backbone


@torch.no_grad()
def _check_runs(backbone: HuggingFaceBackbone, request: str) -> None:
    """Encode two tokens. Some models accept a shape when they are built and fail when they run.

    Raises:
        ConfigError: if the model fails.
    """
    # Fixed numbers, because building a backbone may draw random numbers for its weights only.
    tokens = torch.arange(2 * backbone.width, dtype=torch.float32).view(1, 2, -1).cos()
    try:
        backbone.eval().observe(tokens, torch.zeros(1, 2, dtype=torch.bool))
        backbone.step(tokens[:, 0], backbone.initial_cache(1))
    except Exception as error:  # any of 200 models, with any values
        raise ConfigError(f"{request}: {reason(error)}") from error
    backbone.train()


def _mixer(model_type: str) -> Mixer | None:
    """Return the function that runs a layer of a state-space model; None for other models."""
    if model_type not in SCAN_FUNCTIONS:
        return None
    module, _, function = SCAN_FUNCTIONS[model_type].rpartition(".")
    mixer: Mixer = getattr(import_module(module), function)
    return mixer


def _load_model(config: Config) -> tuple[PreTrainedModel, float]:
    """Return the model, and the RMS of the tokens it expects."""
    name, path = config.backbone.name, config.backbone.path
    pretrained = config.algo.world_model.hf_model.from_pretrained
    if name == GENERIC_HF:
        if pretrained:
            return load_pretrained(
                path, config.backbone.model_type, "backbone=hf has no checkpoint"
            )
        assert config.backbone.model_type is not None, "checked by config.checks"
        return model_from_scratch(config.backbone.model_type, config.backbone.config or {}), 1.0
    shape = shape_of(name, config.size)
    model_type = family_of(name).model_type
    assert model_type is not None, "the catalog sends only transformers models here"
    if pretrained:
        reason = f"size {config.size} has no checkpoint that transformers reads"
        sizes = [
            f"model={s}, or " for s, other in family_of(name).sizes.items() if other.checkpoint
        ]
        return load_pretrained(path or shape.checkpoint, model_type, reason, "".join(sizes[:1]))
    keys = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, **shape.config}
    if (positions := keys.get(POSITIONS_KEY)) is not None:
        keys[POSITIONS_KEY] = max(positions, config.algo.world_model.hf_model.seq_len)
    return model_from_scratch(model_type, keys), 1.0
