"""Checks overrides of configuration groups (`model=S`), which Hydra's own errors explain badly."""

from __future__ import annotations

from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, QuotedString, Sweep

from llmdreamer.config import GROUPS, ComposedConfig, leaves
from llmdreamer.config.sources import conf_folder, config_root
from llmdreamer.utils.errors import ConfigError, did_you_mean

_EMPTY_BY_DEFAULT = ("exp", "sweeps")
_SECTIONS = {leaf.partition(".")[0] for leaf in leaves(ComposedConfig) if "." in leaf}


def group_options(group: str) -> list[str]:
    """Return the options of a configuration group."""
    folder = config_root() / "sweeps" if group == "sweeps" else conf_folder() / group
    return sorted(path.stem for path in folder.glob("*.yaml"))


def check_group(override: Override) -> None:
    """Check that an override of a group names one option. Other overrides pass.

    Raises:
        ConfigError: if it names none, names several at once, leaves the group out, or adds it again.
    """
    group, line = override.key_or_group, override.input_line
    if group not in GROUPS and not group.startswith("hydra/"):
        return
    options = group_options(group)  # none for Hydra's own groups
    choices = f"choose from {', '.join(options)}" if options else f"type {group}=NAME"
    if override.is_delete():
        if group not in _EMPTY_BY_DEFAULT:
            raise ConfigError(f"{line}: every run has an option of {group}; {choices}")
        return
    value = override.value()
    if isinstance(value, dict) and group in _SECTIONS:  # `algo={horizon: 5}` sets values
        return
    for item in value.list if isinstance(value, ChoiceSweep) else [value]:
        if not isinstance(item, str | QuotedString | Sweep | Glob):
            typed = str(line).partition("=")[2].strip("[]")
            raise ConfigError(f"{line}: no such option; {choices}{did_you_mean(typed, options)}")
    # Each group is in the defaults list already.
    if (override.is_add() or override.is_force_add()) and override.package is None:
        raise ConfigError(f"{line}: leave out the +; type {str(line).lstrip('+')}")
