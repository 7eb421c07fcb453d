"""The folder of a run, decided once its configuration has passed every check and before it is made."""

from __future__ import annotations

import os
import re
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from llmdreamer.config import Config, arm, load
from llmdreamer.errors import ConfigError


def register() -> None:
    """Let conf/config.yaml say `hydra.run.dir: ${llmdreamer.run_dir:<time>}`."""
    OmegaConf.register_resolver("llmdreamer.run_dir", _resolve, replace=True)


def run_dir(cfg: Config, started: str) -> Path:
    """Return the folder of the run that `cfg` describes: that of `resume`, or a new one.

    Args:
        started: the time in the name of a run that has no `run_name`.

    Raises:
        ConfigError: if the folder would lie outside output_root, holds a run, or cannot be written.
    """
    if cfg.resume is not None:
        return Path(cfg.resume)
    root = Path(cfg.output_root).expanduser()
    default = f"{started}_{arm(cfg)}_{cfg.env.id}_{cfg.seed}"
    name = cfg.run_name if cfg.run_name is not None else re.sub(r"[^A-Za-z0-9._-]", "-", default)
    folder = root / name
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"run_name={name}: {folder} leads outside output_root={root}")
    if (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} holds a run: go on with resume={folder}, or change run_name")
    _check_writable(folder)
    return folder


def _check_writable(folder: Path) -> None:
    there = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    if not there.is_dir():
        raise ConfigError(f"{folder} cannot be made: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be made: no permission to write in {there}")


def _resolve(started: str, _root_: DictConfig) -> str:
    # Hydra asks before it makes the folder and may ask again later, when the run is in it.
    if not OmegaConf.is_missing(_root_.hydra.runtime, "output_dir"):
        return str(_root_.hydra.runtime.output_dir)
    return str(run_dir(load(_root_, _root_.hydra.overrides.task), started))
