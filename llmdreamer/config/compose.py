"""Compose a configuration in Python, as a command does."""

from __future__ import annotations

import hydra
from hydra.core.global_hydra import GlobalHydra

from llmdreamer.config.load import load, register
from llmdreamer.config.schema import Config
from llmdreamer.config.sources import conf_folder


def compose(*overrides: str) -> Config:
    """Compose a configuration from the overrides of the command line, typed, complete and checked.

    It clears Hydra's global state, also that of a surrounding Hydra application.

    Args:
        overrides: `key=value` and `group=option`, as after `llmdreamer train`.

    Raises:
        ConfigError: if a value is out of range or in conflict with another.
        hydra.errors.HydraException: if a key or an option does not exist.
    """
    register()
    GlobalHydra.instance().clear()  # Hydra refuses a second initialization in one process
    with hydra.initialize_config_dir(str(conf_folder())):
        return load(hydra.compose("config", overrides=list(overrides)), overrides)
