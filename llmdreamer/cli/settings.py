"""Loads the configuration of a run inside Hydra's job, whose working directory may be the run's folder."""

from __future__ import annotations

from contextlib import chdir
from pathlib import Path

from hydra.conf import HydraConf
from omegaconf import DictConfig

from llmdreamer.config import AUTO, Config, load
from llmdreamer.tracking import resolve_uri
from llmdreamer.utils.files import expand_user


def load_settings(cfg: DictConfig, hydra: HydraConf) -> Config:
    """Load the configuration of a run; relative paths count from where the command was typed.

    With `hydra.job.chdir=true` the run works in its own folder: the paths are then made absolute.

    Raises:
        ConfigError: as `load`.
    """
    typed_in = Path(hydra.runtime.cwd)
    with chdir(typed_in):
        config = load(cfg, hydra.overrides.task)
        if hydra.job.chdir:
            config.output_root = str(_absolute(config.output_root))
            config.tracking.uri = resolve_uri(config.tracking.uri, typed_in)
            if config.resume not in (None, AUTO):
                config.resume = str(_absolute(str(config.resume)))
            path = config.backbone.path
            if path is not None and _absolute(path).exists():  # else the name of a hub repository
                config.backbone.path = str(_absolute(path))
    return config


def _absolute(path: str) -> Path:
    return expand_user(path).absolute()
