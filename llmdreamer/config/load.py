"""Load a checked `Config` from Hydra or from a saved run, and save it as YAML."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from llmdreamer.config.checks import LARGEST_EXPONENT, check
from llmdreamer.config.plugins import check_trust
from llmdreamer.config.resume import Change, change_on_resume
from llmdreamer.config.schema import ComposedConfig, Config, leaves
from llmdreamer.utils.command_line import argument
from llmdreamer.utils.errors import ConfigError, did_you_mean, first_line
from llmdreamer.utils.files import expand_user
from llmdreamer.utils.redact import REDACTED, redact_message, redact_values, remember_secrets

GROUPS = ("algo", "model", "recipe", "backbone", "lora", "env", "exp", "sweeps")
AUTO = "auto"
"""`resume=auto`: resume the run `run_name` if it has a checkpoint, else start it."""
_FILLED = ("algo.learning_starts", "algo.imag_starts")
"""Values whose null is replaced when a run starts."""
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


def register() -> None:
    """Register the schema with Hydra under `schema`, which `conf/config.yaml` starts from."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=ComposedConfig, replace=True)


def is_registered() -> bool:
    """Return True if `register` was called: the configuration of this process is llmdreamer's."""
    from hydra.core.config_store import ConfigStore

    return "schema.yaml" in ConfigStore.instance().repo


def load(cfg: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """Return the composed configuration typed, complete and checked.

    With `resume`, the result is the saved configuration of the run, changed only by `overrides`. With
    `resume=auto` and a run to resume, `resume` holds its folder; without such a run it stays `auto`.

    Args:
        cfg: as composed by Hydra; a `hydra` node is ignored.
        overrides: typed by the user (`hydra.overrides.task`).

    Raises:
        ConfigError: if a value is missing, out of range or in conflict with another, or if a file sets
            `trust`.
    """
    names = [field.name for field in dataclasses.fields(ComposedConfig)]
    raw = OmegaConf.to_container(OmegaConf.masked_copy(cfg, names), resolve=False)
    try:
        # A fresh schema refuses keys that `+key=value` added to the composed one.
        composed = OmegaConf.merge(OmegaConf.structured(ComposedConfig), raw)
    except OmegaConfBaseException as error:
        raise ConfigError(_describe(error)) from error
    if composed.trust and not any(_override_key(override) == "trust" for override in overrides):
        raise ConfigError(
            f"trust={_to_list_override(composed.trust)} is set in a file: type it in the command instead"
        )
    if composed.resume == AUTO:
        return _resume_automatically(composed)
    if composed.resume is not None:
        composed = _resume(composed, overrides)
    return _to_checked_config(composed)


def run_folder(output_root: str, name: str) -> Path:
    """Return the folder of a run by its name.

    Raises:
        ConfigError: if the folder would be outside output_root.
    """
    root = expand_user(output_root)
    folder = root / name
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"run_name={name}: {folder} is outside output_root={root}")
    return folder


def to_yaml(cfg: Config) -> str:
    """Return the resolved configuration as YAML, without passwords and tokens."""
    return yaml.safe_dump(redact_values(dataclasses.asdict(cfg)), sort_keys=False)


def from_yaml(path: str | Path, trust: Sequence[str] = ()) -> Config:
    """Read a configuration that `to_yaml` wrote. The file is data: nothing in it is resolved or run.

    Args:
        trust: packages whose code the file may name. The file's own `trust` is ignored.

    Raises:
        ConfigError: if the file is missing, is not YAML, lacks a value, or holds an unknown key; or if
            `trust` holds what is no package.
    """
    check_trust(trust)
    try:
        raw = _load_yaml(Path(path).read_text(encoding="utf-8"))
        has_reference = "${" in str(raw)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except _AliasError as error:
        raise ConfigError(f"{path}: a saved configuration must not contain {error}") from error
    # A number may be too long. For `!!bool x` and `!!timestamp x` PyYAML raises the last two.
    except (yaml.YAMLError, ValueError, RecursionError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: not a saved configuration (not YAML)") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: not a saved configuration (not a mapping)")
    if has_reference:
        raise ConfigError(f"{path}: a saved configuration must not contain ${{...}}")
    try:
        for leaf, kind in leaves().items():
            _check_form(raw, leaf, kind)
        saved = OmegaConf.merge(OmegaConf.structured(Config), raw)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_describe(error)}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        config = _to_config(saved)
        config.trust = list(trust)
        check(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config


def _check_form(raw: dict[str, Any], leaf: str, kind: Any) -> None:
    """Check sections, lists and sizes of numbers: OmegaConf raises errors that do not name the key.

    Raises:
        ConfigError: naming the key.
    """
    value: Any = raw
    for depth, name in enumerate(names := leaf.split(".")):
        if not isinstance(value, dict):
            raise ConfigError(
                f"{'.'.join(names[:depth])}={_shown(value)}: must be a section of keys"
            )
        if name not in value:  # reported as missing later
            return
        value = value[name]
    for container, text in ((list, "a list"), (dict, "a section of keys")):
        if get_origin(kind) is container and not isinstance(value, container):
            raise ConfigError(f"{leaf}={_shown(value)}: must be {text}")
    if isinstance(value, int) and value.bit_length() > LARGEST_EXPONENT:
        raise ConfigError(f"{leaf}: this number is far too large")


class _AliasError(yaml.YAMLError):
    pass


class _PlainLoader(yaml.SafeLoader):
    """A safe loader that refuses aliases: nested ones expand a short file without limit."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise _AliasError(f"the alias *{self.peek_event().anchor}")
        return super().compose_node(parent, index)


def _load_yaml(text: str) -> Any:
    return yaml.load(text, _PlainLoader)  # noqa: S506  (a SafeLoader)


def read_run_config(run_dir: Path, trust: Sequence[str]) -> Config:
    """Read the configuration of a run that has checkpoints, as `from_yaml`. Raises ConfigError."""
    if not (run_dir / "checkpoints").is_dir():
        raise ConfigError(f"missing checkpoint: {run_dir} has no checkpoints/")
    return from_yaml(run_dir / "config.yaml", trust)


def _to_checked_config(cfg: Any) -> Config:
    config = _to_config(cfg)
    remember_secrets(dataclasses.asdict(config))
    _fill_defaults(config)
    check(config)
    return config


def _to_config(cfg: Any) -> Config:
    try:
        config = OmegaConf.to_object(cfg)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} is missing: set {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        raise ConfigError(_describe(error)) from error
    assert isinstance(config, Config)
    return Config(
        **{field.name: getattr(config, field.name) for field in dataclasses.fields(Config)}
    )


def _fill_defaults(cfg: Config) -> None:
    """Replace each null whose default depends on other values."""
    algo = cfg.algo
    if algo.learning_starts is None:
        algo.learning_starts = min(500, max(0, algo.total_steps) // 4)
    if algo.imag_starts is None:
        algo.imag_starts = algo.per_rank_sequence_length


def _resume(composed: Any, overrides: Sequence[str]) -> Any:
    """Lay the typed overrides over the saved configuration of the run in `composed.resume`.

    Raises:
        ConfigError: if the folder holds no run, or an override changes what must stay.
    """
    if not composed.resume:
        raise ConfigError("resume=: set it to a run's folder, or to auto")
    folder = Path(composed.resume)
    if not folder.is_dir():
        raise ConfigError(f"missing checkpoint: resume={folder} is not a run's folder")
    for required in ("config.yaml", "checkpoints"):
        if not (folder / required).exists():
            raise ConfigError(f"missing checkpoint: {folder} has no {required}; start a new run")
    typed = [_override_key(override) for override in overrides]
    for key in typed:
        if key.partition("@")[0] in GROUPS:
            raise ConfigError(f"resume={folder} keeps the {key} of that run: leave out {key}=...")
    saved = OmegaConf.structured(from_yaml(folder / "config.yaml", composed.trust))
    unresolved = OmegaConf.to_container(composed, resolve=False)
    for leaf in leaves():
        # A typed key sets its own value and every value that refers to it: `${replay_ratio}`.
        sources = [leaf, *_REFERENCE.findall(str(_get(unresolved, leaf)))]
        is_typed = any(_overlap(source, key) for source in sources for key in typed)
        old, new = _select(saved, leaf), _select(composed, leaf)
        if not is_typed and REDACTED not in str(old):
            continue
        if isinstance(old, dict) and any(key.startswith(f"{leaf}.") for key in typed):
            new = {**old, **new}  # single items are typed; the run keeps the others
        if leaf in _FILLED and new is None:
            continue
        if change_on_resume(leaf) is Change.NEVER and not _equal(old, new, leaf):
            if not is_typed:
                raise ConfigError(
                    f"resume={folder}: {leaf} was saved without its secrets: type {leaf}=... again"
                )
            raise ConfigError(
                f"resume={folder}: that run has {leaf}={_shown(old)}, this command has {_shown(new)};"
                f" leave out {leaf}, or start a new run"
            )
        OmegaConf.update(saved, leaf, new)
    return saved


def _override_key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _to_list_override(names: Sequence[str]) -> str:
    return f"[{','.join(names)}]"


def _resume_automatically(composed: Any) -> Config:
    """Return the typed configuration, or that of the run `run_name` if it has a checkpoint.

    The two must agree, except in values that may always change.
    """
    typed = _to_checked_config(composed)
    if typed.run_name is None:
        raise ConfigError("resume=auto: set run_name=... to the run to resume or start")
    folder = run_folder(typed.output_root, typed.run_name)
    if not any(folder.glob("checkpoints/step-*.pt")):
        return typed
    if not (folder / "config.yaml").exists():  # a new run here would delete the checkpoints
        raise ConfigError(
            f"resume=auto: {folder} holds checkpoints but no config.yaml: restore the file,"
            " or change run_name"
        )
    saved = OmegaConf.structured(from_yaml(folder / "config.yaml", composed.trust))
    command = OmegaConf.structured(typed)
    for leaf in leaves():
        old, new = _select(saved, leaf), _select(command, leaf)
        change = change_on_resume(leaf)
        # A null was filled when the run started, perhaps for another total_steps.
        if leaf in _FILLED and _select(composed, leaf) is None:
            continue
        if change is not Change.ALWAYS and not _equal(old, new, leaf):
            word = argument(leaf, new) if isinstance(new, str) else f"{leaf}={_shown(new)}"
            advice = f", or type {argument('resume', folder)} {word}"
            raise ConfigError(
                f"resume=auto: {folder} has {leaf}={_shown(old)}, this command has {_shown(new)};"
                f" change run_name{advice if change is Change.TYPED else ''}"
            )
        OmegaConf.update(saved, leaf, new)
    OmegaConf.update(saved, "resume", str(folder))
    return _to_checked_config(saved)


def _select(config: Any, leaf: str) -> Any:
    """Return the value under a dotted key, with references resolved, as plain types."""
    value = OmegaConf.select(config, leaf)
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _equal(old: Any, new: Any, leaf: str) -> bool:
    """Compare a saved value, which may lack its secrets, with that of a command."""
    return bool(old == new or redact_values(old, leaf) == redact_values(new, leaf))


def _shown(value: Any) -> str:
    return " ".join(redact_message(str(redact_values(value))).split())


def _overlap(first: str, second: str) -> bool:
    """Return True if two dotted keys are equal or one lies below the other."""
    return f"{first}.".startswith(f"{second}.") or f"{second}.".startswith(f"{first}.")


def _get(tree: Any, key: str) -> Any:
    for name in key.split("."):
        tree = tree[name]
    return tree


def _describe(error: OmegaConfBaseException) -> str:
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"unknown key '{error.full_key}'{did_you_mean(str(error.full_key), leaves(ComposedConfig))}"
    return f"{error.full_key or 'configuration'}: {first_line(error)}"
