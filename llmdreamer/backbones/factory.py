"""Builds the backbone that a configuration asks for: one of ours, or another package's."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llmdreamer.backbones.base import Backbone
from llmdreamer.config import plugins
from llmdreamer.config.catalog import family_of
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import Config


def make_backbone(config: Config) -> Backbone:
    """The backbone of `config.backbone`, at `config.size`.

    Raises:
        ConfigError: if there is no such size, checkpoint or LoRA target, or a width disagrees.
    """
    backbone = _made(config)
    name = config.backbone.name
    asked = config.algo.world_model.recurrent_model.recurrent_state_size
    if asked is not None and asked != backbone.width:
        path = config.backbone.path
        what = f"at size {config.size}" if path is None else f"with backbone.path={path}"
        raise ConfigError(
            f"algo.world_model.recurrent_model.recurrent_state_size={asked}: backbone={name} {what}"
            f" is {backbone.width} wide"
        )
    return backbone


def _made(config: Config) -> Backbone:
    cfg = config.backbone
    if cfg.factory is None:
        # Imported by name, and late: transformers takes seconds, and the control arm does without.
        module, _, function = family_of(cfg.name).factory.rpartition(".")
        ours: Backbone = getattr(import_module(module), function)(config)
        return ours
    theirs = plugins.call("backbone.factory", cfg.factory, config.trust, [config], cfg.options)
    if not isinstance(theirs, Backbone):
        raise ConfigError(
            f"backbone.factory={cfg.factory}: makes a {type(theirs).__name__}, not a"
            " llmdreamer.backbones.Backbone"
        )
    # What the run's records say of it must be true.
    peft = config.algo.world_model.hf_model.peft
    if peft and not any(".lora_" in weight for weight, _ in theirs.named_parameters()):
        raise ConfigError(f"peft=true: backbone={cfg.name} has made no adapters")
    return theirs
