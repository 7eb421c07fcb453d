"""From what Hydra composed, or what a run saved, to a checked `Config`; and back to YAML."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from llmdreamer.config.checks import check
from llmdreamer.config.schema import ComposedConfig, Config, leaves
from llmdreamer.utils.errors import ConfigError, did_you_mean

GROUPS = ("algo", "model", "recipe", "backbone", "lora", "env", "exp", "sweeps")
AUTO = "auto"
"""`resume=auto`: go on with the run called `run_name`, or begin it."""
REDACTED = "***"
# What the same command may say otherwise when it goes on with a run by itself: nothing that has
# shaped what the run has learned so far.
_MAY_CHANGE = (
    *("resume", "run_name", "device", "threads", "objective", "output_root", "seeds", "rerun"),
    *(
        "algo.total_steps",
        "env.processes",
        "env.max_restarts",
        "env.timeout",
        "algo.optimizer.max_skipped",
    ),
    *("checkpoint.", "eval.", "tracking."),
)
_SECRET_KEY = re.compile(r"(^|_)(password|passwd|secret|token|api_?key|credentials?)$", re.I)
_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def register() -> None:
    """Register the schema with Hydra, under the name that `conf/config.yaml` starts from."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=ComposedConfig, replace=True)


def load(cfg: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """Return the composed configuration typed, complete and checked.

    With `resume`, the run's own saved configuration, changed only by the `overrides` typed beside it.
    With `resume=auto` and a run to go on with, its folder is in `resume`; without, `auto` stays there.

    Args:
        cfg: as Hydra composed it; a `hydra` node is ignored.
        overrides: what the user typed (`hydra.overrides.task`).

    Raises:
        ConfigError: if a value is missing, out of range or at odds with another, or a file says whom
            to trust.
    """
    names = [field.name for field in dataclasses.fields(ComposedConfig)]
    raw = OmegaConf.to_container(OmegaConf.masked_copy(cfg, names), resolve=False)
    try:
        # Into a fresh schema: it refuses keys that `+key=value` forced into the composed one.
        composed = OmegaConf.merge(OmegaConf.structured(ComposedConfig), raw)
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from error
    if composed.trust and not any(_key(override) == "trust" for override in overrides):
        raise ConfigError(f"trust={_spelled(composed.trust)} stands in a file: type it instead")
    if composed.resume == AUTO:
        return _automatic(composed)
    if composed.resume is not None:
        composed = _continued(composed, overrides)
    return _complete(composed)


def folder_in(output_root: str, name: str) -> Path:
    """Return the folder of a run by its name.

    Raises:
        ConfigError: if it would lie outside output_root.
    """
    root = Path(output_root).expanduser()
    folder = root / name
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"run_name={name}: {folder} leads outside output_root={root}")
    return folder


def to_yaml(cfg: Config) -> str:
    """Return the resolved configuration as YAML, without passwords and tokens."""
    return yaml.safe_dump(_redacted(dataclasses.asdict(cfg)), sort_keys=False)


def from_yaml(path: str | Path, trust: Sequence[str] = ()) -> Config:
    """Read what `to_yaml` wrote. The file is data: nothing in it is looked up or run.

    Args:
        trust: packages whose code the file may name; whom it trusts itself does not count.

    Raises:
        ConfigError: if the file is missing, is not YAML, or holds other keys than the schema's.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a saved configuration (not YAML)") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: not a saved configuration (not a mapping)")
    if "${" in str(raw):
        raise ConfigError(f"{path}: a saved configuration holds values, not ${{...}}")
    try:
        saved = OmegaConf.merge(OmegaConf.structured(Config), raw)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from error
    try:
        config = _typed(saved)
        config.trust = list(trust)
        check(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def read_run_config(run_dir: Path, trust: Sequence[str]) -> Config:
    """The configuration of a run that has checkpoints; see `from_yaml`. Raises ConfigError."""
    if not (run_dir / "checkpoints").is_dir():
        raise ConfigError(f"missing checkpoint: {run_dir} has no checkpoints/")
    return from_yaml(run_dir / "config.yaml", trust)


def _complete(cfg: Any) -> Config:
    config = _typed(cfg)
    _fill(config)
    check(config)
    return config


def _typed(cfg: Any) -> Config:
    try:
        config = OmegaConf.to_object(cfg)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is needed: give {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(_first_line(error)) from error
    assert isinstance(config, Config)
    return Config(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    )


def _fill(cfg: Config) -> None:
    """Replace each null that stands for a number that depends on other values."""
    algo = cfg.algo
    if algo.learning_starts is None:
        algo.learning_starts = min(500, max(0, algo.total_steps) // 4)
    if algo.imag_starts is None:
        algo.imag_starts = algo.per_rank_sequence_length


def _continued(composed: Any, overrides: Sequence[str]) -> Any:
    """Lay the typed overrides over the saved configuration of the run in `composed.resume`."""
    if not composed.resume:
        raise ConfigError("resume=: give a run's folder, or auto")
    folder = Path(composed.resume)
    if not folder.is_dir():
        raise ConfigError(f"missing checkpoint: resume={folder} is not a run's folder")
    for needed in ("config.yaml", "checkpoints"):
        if not (folder / needed).exists():
            raise ConfigError(f"missing checkpoint: {folder} has no {needed}; start the run anew")
    typed = [_key(override) for override in overrides]
    for key in typed:
        if key.partition("@")[0] in GROUPS:
            raise ConfigError(f"resume={folder} keeps that run's own {key}: leave out {key}=...")
    saved = OmegaConf.structured(from_yaml(folder / "config.yaml", composed.trust))
    written = OmegaConf.to_container(composed, resolve=False)
    for leaf in leaves():
        # A value follows what was typed if it is that key, or refers to it: `${replay_ratio}`.
        sources = [leaf, *_REFERENCE.findall(str(_at(written, leaf)))]
        follows = any(_related(source, key) for source in sources for key in typed)
        if follows or REDACTED in str(OmegaConf.select(saved, leaf)):
            OmegaConf.update(saved, leaf, OmegaConf.select(composed, leaf))
    return saved


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _spelled(names: Sequence[str]) -> str:
    return f"[{','.join(names)}]"


def _automatic(composed: Any) -> Config:
    """The configuration as typed; if the run called so has a checkpoint, that run's, which must agree."""
    typed = _complete(composed)
    if typed.run_name is None:
        raise ConfigError("resume=auto: give run_name=..., the run to look for")
    folder = folder_in(typed.output_root, typed.run_name)
    if not any(folder.glob("checkpoints/step-*.pt")):
        return typed
    if not (folder / "config.yaml").exists():  # to begin anew here would remove them
        raise ConfigError(
            f"resume=auto: {folder} holds checkpoints and no config.yaml to go on with: put it back,"
            " or change run_name"
        )
    saved = OmegaConf.structured(from_yaml(folder / "config.yaml", composed.trust))
    now = OmegaConf.structured(typed)
    for leaf in leaves():
        was, wanted = OmegaConf.select(saved, leaf), OmegaConf.select(now, leaf)
        if leaf.startswith(_MAY_CHANGE) or REDACTED in str(was):
            OmegaConf.update(saved, leaf, wanted)
        # A null was filled in when the run began, perhaps for another length.
        elif was != wanted and OmegaConf.select(composed, leaf) is not None:
            raise ConfigError(
                f"resume=auto: {folder} was begun with {leaf}={was}, this command has {wanted};"
                f" change run_name, or type resume={folder} {leaf}={wanted}"
            )
    OmegaConf.update(saved, "resume", str(folder))
    return _complete(saved)


def _related(one: str, other: str) -> bool:
    """Whether two dotted keys are the same, or one lies below the other."""
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _at(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def _first_line(error: OmegaConfBaseException) -> str:
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"unknown key '{error.full_key}'{did_you_mean(str(error.full_key), leaves(ComposedConfig))}"
    return f"{error.full_key or 'configuration'}: {(error.msg or str(error)).splitlines()[0]}"


def _redacted(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _redacted(item, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_redacted(item, key) for item in value]
    if isinstance(value, str):
        return REDACTED if _SECRET_KEY.search(key) else _USERINFO.sub(REDACTED, value)
    return value
