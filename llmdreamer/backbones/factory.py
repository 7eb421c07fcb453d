"""Builds the backbone that a configuration asks for: scratch or pretrained, whole or with LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmdreamer.backbones.base import Backbone
from llmdreamer.backbones.catalogue import shape_of
from llmdreamer.backbones.gru import GRUBackbone
from llmdreamer.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import Config


def make_backbone(config: Config) -> Backbone:
    """The backbone of `config.backbone`, at `config.size`.

    Raises:
        ConfigError: if there is no such size, checkpoint or LoRA target, or a width disagrees.
    """
    backbone: Backbone
    if config.backbone.name == "gru":
        backbone = GRUBackbone(shape_of("gru", config.size).width)
    else:
        # transformers takes seconds to import, and the control arm does not need it.
        from llmdreamer.backbones.huggingface import make_huggingface

        backbone = make_huggingface(config)
    asked = config.algo.world_model.recurrent_model.recurrent_state_size
    if asked is not None and asked != backbone.width:
        raise ConfigError(
            f"algo.world_model.recurrent_model.recurrent_state_size={asked}: backbone="
            f"{config.backbone.name} at size {config.size} is {backbone.width} wide"
        )
    return backbone
