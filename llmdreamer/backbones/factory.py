"""Builds the configured backbone: one of this package, or another package's."""

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
    """Return the backbone of `config.backbone` at `config.size`.

    Raises:
        ConfigError: if the size, checkpoint or LoRA target does not exist, or a width disagrees.
    """
    backbone = _build(config)
    name = config.backbone.name
    width = config.algo.world_model.recurrent_model.recurrent_state_size
    if width is not None and width != backbone.width:
        path = config.backbone.path
        source = f"at size {config.size}" if path is None else f"with backbone.path={path}"
        raise ConfigError(
            f"algo.world_model.recurrent_model.recurrent_state_size={width}: backbone={name} {source}"
            f" is {backbone.width} wide; set it to {backbone.width} or null"
        )
    return backbone


def _build(config: Config) -> Backbone:
    cfg = config.backbone
    if cfg.factory is None:
        # Imported late and by name: transformers takes seconds, and the control arm does not need it.
        module, _, function = family_of(cfg.name).factory.rpartition(".")
        built_in: Backbone = getattr(import_module(module), function)(config)
        return built_in
    plugin = plugins.call("backbone.factory", cfg.factory, config.trust, [config], cfg.options)
    if not isinstance(plugin, Backbone):
        raise ConfigError(
            f"backbone.factory={cfg.factory}: returns a {type(plugin).__name__}; it must return a"
            " llmdreamer.backbones.Backbone"
        )
    # The run's records say peft=true, so there must be adapters.
    peft = config.algo.world_model.hf_model.peft
    if peft and not any(".lora_" in name for name, _ in plugin.named_parameters()):
        raise ConfigError(
            f"peft=true: backbone={cfg.name} has no LoRA adapters; set peft=false, or have"
            f" {cfg.factory} add them"
        )
    return plugin
