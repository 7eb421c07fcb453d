"""A model of transformers made a backbone: loaded or drawn, stripped of its words, adapted, wrapped."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.logging import disable_propagation

from llmdreamer.backbones.attention import is_known, make_attention
from llmdreamer.backbones.base import Backbone
from llmdreamer.backbones.checkpoint import from_scratch, load_pretrained
from llmdreamer.backbones.statespace import Mix, StateSpaceBackbone
from llmdreamer.backbones.window import make_window
from llmdreamer.config.catalog import ANY, SCANS, family_of, shape_of

if TYPE_CHECKING:
    from llmdreamer.config import Config

POSITIONS = "max_position_embeddings"
"""Rows of a table of positions: of a checkpoint as many as it has, from scratch as many as are needed."""


def make_huggingface(config: Config) -> Backbone:
    """The backbone of a model of transformers.

    Raises:
        ConfigError: if the model cannot be had, or cannot do what is asked of it.
    """
    # Where the environment says CI, transformers hands its lines on to us too: each would come twice.
    disable_propagation()
    model, input_rms = _model(config)
    hf = config.algo.world_model.hf_model
    texts = config.algo.text_keys
    words = model.get_input_embeddings() if texts.encoder or texts.sequence else None
    # Tokens are vectors: no word is ever looked up in the model itself.
    model.set_input_embeddings(None)  # type: ignore[arg-type]
    if hf.peft:
        from llmdreamer.backbones.lora import add_lora, check_adapters  # peft takes its time

        add_lora(model, config.lora)
    backbone: Backbone
    mix = _scan(model.config.model_type)
    if mix is not None:
        backbone = StateSpaceBackbone(model, mix, input_rms)
    elif is_known(model.config):
        backbone = make_attention(model, hf.seq_len, input_rms)
    else:
        backbone = make_window(model, hf.seq_len, input_rms)
    if hf.from_pretrained and isinstance(words, nn.Embedding):
        backbone.vocabulary = words.weight.detach()
    if hf.peft:
        check_adapters(backbone)
    return backbone


def _scan(model_type: str) -> Mix | None:
    """What runs a layer of a state-space model; None for any other."""
    if model_type not in SCANS:
        return None
    module, _, function = SCANS[model_type].rpartition(".")
    mix: Mix = getattr(import_module(module), function)
    return mix


def _model(config: Config) -> tuple[PreTrainedModel, float]:
    """The model, and the RMS of the tokens it is used to."""
    name, path = config.backbone.name, config.backbone.path
    pretrained = config.algo.world_model.hf_model.from_pretrained
    if name == ANY:
        if pretrained:
            return load_pretrained(path, config.backbone.model_type, "backbone=hf has none")
        assert config.backbone.model_type is not None, "config.checks sees to it"
        return from_scratch(config.backbone.model_type, config.backbone.config or {}), 1.0
    shape = shape_of(name, config.size)
    model_type = family_of(name).model_type
    assert model_type is not None, "the catalogue sends no other here"
    if pretrained:
        none = f"size {config.size} has none that transformers reads"
        return load_pretrained(path or shape.checkpoint, model_type, none)
    keys = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, **shape.config}
    if (table := keys.get(POSITIONS)) is not None:
        keys[POSITIONS] = max(table, config.algo.world_model.hf_model.seq_len)
    return from_scratch(model_type, keys), 1.0
