"""Reads a sweep's specification and command line, and checks them before the first run."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from omegaconf import DictConfig, OmegaConf

from llmdreamer.config import Config, load, parse_objectives, refuse_unlogged
from llmdreamer.config.objective import Objective
from llmdreamer.config.sources import conf_folder
from llmdreamer.sweep.settings import (
    LAUNCHERS,
    ConstraintSettings,
    RaySettings,
    SubmititSettings,
    SweeperSettings,
)
from llmdreamer.utils.errors import ConfigError, did_you_mean

DIRECTIONS = ("maximize", "minimize")
# Keys that only the driver reads; it gives each run its own folder.
_DRIVER_KEYS = ("seed", "seeds", "rerun", "run_name", "resume")
_DRIVER_HYDRA_KEYS = re.compile(r"[~+]*hydra[./](sweeper|launcher|sweep|mode|run\.dir)\b")


@dataclass(frozen=True)
class Plan:
    """Everything about a sweep that is decided before its first run."""

    name: str
    folder: Path
    settings: SweeperSettings
    launcher: SubmititSettings | RaySettings | None  # None: runs are child processes of the driver
    objectives: list[Objective]
    maximize: list[bool]  # for each objective
    fixed: list[str]  # overrides that all runs share
    swept: dict[str, Override]  # by key: overrides that vary (lists, ranges, intervals)
    arms: dict[str, list[str]]  # by name: the arm's overrides; {"": []} without arms
    seeds: list[int]
    rerun: bool
    hydra_overrides: list[str]  # overrides of Hydra's own keys that the runs need too
    base: Config  # what the runs have in common, see `_compose_base`
    master: DictConfig
    loader: ConfigLoader

    def compose(self, overrides: Sequence[str]) -> Config:
        """Compose and check the configuration of a run.

        Raises:
            ConfigError: if a value is out of range or conflicts with another, or an objective is never
                logged.
            HydraException: if a key or an option does not exist.
        """
        config = load(self.loader.load_sweep_config(self.master, list(overrides)), overrides)
        refuse_unlogged(config)
        return config


def read_plan(master: DictConfig, loader: ConfigLoader, arguments: Sequence[str]) -> Plan:
    """Read `hydra.sweeper` and the typed overrides. Typed overrides take precedence.

    Raises:
        ConfigError: for any mistake in them, before anything is written.
    """
    settings = _read_settings(master)
    typed = _expand_globs(_last_by_key([*_to_overrides(settings.params), *arguments]), loader)
    seeds = _seeds(master, typed.pop("seed", None))
    for key in _DRIVER_KEYS:
        typed.pop(key, None)
    swept = {key: override for key, override in typed.items() if override.is_sweep_override()}
    fixed = [_input_line(override) for key, override in typed.items() if key not in swept]
    arms = {name: _split_overrides(name, text) for name, text in settings.arms.items()} or {"": []}
    folder = Path(master.hydra.sweep.dir).resolve()
    objectives = parse_objectives(master.objective)
    # An arm may set what the specification leaves open, such as the environment.
    base = _compose_base(master, loader, fixed, swept, next(iter(arms.values())))
    return Plan(
        name=settings.study_name or folder.name,
        folder=folder,
        settings=settings,
        launcher=_read_launcher(master),
        objectives=objectives,
        maximize=_maximize(settings.direction, objectives),
        fixed=fixed,
        swept=swept,
        arms=arms,
        seeds=seeds,
        rerun=master.rerun,
        hydra_overrides=[
            o for o in master.hydra.overrides.hydra if not _DRIVER_HYDRA_KEYS.match(o)
        ],
        base=base,
        master=master,
        loader=loader,
    )


def _compose_base(
    master: DictConfig,
    loader: ConfigLoader,
    fixed: Sequence[str],
    swept: dict[str, Override],
    first_arm: Sequence[str],
) -> Config:
    """Compose the overrides that all runs share, with those of the first arm.

    If a default conflicts with them, the first value of each swept key is added: the swept values may
    not conflict.
    """

    def compose(overrides: Sequence[str]) -> Config:
        return load(loader.load_sweep_config(master, list(overrides)), fixed)

    try:
        return compose([*fixed, *first_arm])
    except ConfigError:
        return compose([*fixed, *_first_values(swept), *first_arm])


def config_source_flags(hydra: DictConfig) -> list[str]:
    """Return Hydra's flags for another configuration than conf/config.yaml, with absolute paths."""
    name = hydra.job.config_name
    flags = [] if name == "config" else [f"--config-name={name}"]
    for source in hydra.runtime.config_sources:
        location = source.path if source.schema == "file" else f"{source.schema}://{source.path}"
        if source.provider == "main" and Path(location) != conf_folder():
            flags.append(f"--config-path={location}")
        if source.provider == "command-line":
            flags.append(f"--config-dir={location}")
    return flags


def _read_settings(master: DictConfig) -> SweeperSettings:
    _refuse_added_keys("hydra.sweeper", master.hydra.sweeper, SweeperSettings)
    settings = OmegaConf.to_object(master.hydra.sweeper)
    assert isinstance(settings, SweeperSettings)
    if ":" not in settings.sampler:  # hub:NAME stays as it is
        settings.sampler = settings.sampler.lower().replace("-", "")  # NSGA-II is nsgaii
    pruner = settings.pruner.lower()
    settings.pruner = "successive_halving" if pruner == "asha" else pruner
    _refuse_trust(settings)
    _check_settings(settings)
    return settings


def _refuse_trust(settings: SweeperSettings) -> None:
    """Refuse `trust` in a specification: the runs would take it for typed by the user."""
    lines = [*_to_overrides(settings.params), *shlex.split(" ".join(settings.arms.values()))]
    for line in lines:
        if line.lstrip("+~").startswith("trust="):
            raise ConfigError(f"{line} is set in a file: type it on the command line instead")


def _check_settings(settings: SweeperSettings) -> None:
    _refuse_study_settings_of_a_grid(settings)
    for key, value in vars(settings).items():
        if any(map(math.isnan, _floats(value))):
            raise ConfigError(f"hydra.sweeper.{key}: nan is not a value")
    limits = {f"constraints.{name}": limit for name, limit in settings.constraints.limits().items()}
    for key, limit in {
        "max_hours": settings.max_hours,
        "max_flops": settings.max_flops,
        **limits,
    }.items():
        if limit is not None and not 0 < limit < math.inf:
            raise ConfigError(f"hydra.sweeper.{key}={limit:g}: must be a number above 0")
    for key in ("retries", "stop_within"):
        if (value := getattr(settings, key)) < 0:
            raise ConfigError(f"hydra.sweeper.{key}={value}: must be >= 0")
    for key, value in settings.params.items():
        if isinstance(value, dict):
            inner = next(iter(value), "...")
            raise ConfigError(
                f"hydra.sweeper.params.{key}={value}: nested keys are written with dots;"
                f" write '{key}.{inner}: VALUES', or type {key}.{inner}=VALUES"
            )


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, ConstraintSettings):
        yield from _floats(value.limits())
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _floats(item)


def _refuse_study_settings_of_a_grid(settings: SweeperSettings) -> None:
    values = {
        "start": settings.start,
        "constraints": settings.constraints.limits(),
        "max_hours": settings.max_hours,
        "max_flops": settings.max_flops,
    }
    for key, value in values.items():
        if settings.n_trials is None and value not in (None, [], {}):
            raise ConfigError(
                f"hydra.sweeper.{key} is for studies: set hydra.sweeper.n_trials=..., or leave it out"
            )


def _read_launcher(master: DictConfig) -> SubmititSettings | RaySettings | None:
    """Read the settings of `hydra/launcher`; None for child processes of the driver."""
    choice = master.hydra.runtime.choices.get("hydra/launcher")
    if choice == "basic":
        return None
    launcher = OmegaConf.to_object(master.hydra.launcher)
    if not isinstance(launcher, SubmititSettings | RaySettings):
        raise ConfigError(
            f"hydra/launcher={choice}: the sweeper starts its runs itself;"
            f" choose from basic, {', '.join(LAUNCHERS)} (docs/clusters.md)"
        )
    _refuse_added_keys("hydra.launcher", master.hydra.launcher, type(launcher))
    package = "ray" if isinstance(launcher, RaySettings) else "submitit"
    if find_spec(package) is None:
        raise ConfigError(
            f"hydra/launcher={choice}: {package} is not installed;"
            f" pip install 'llmdreamer[{package}]'"
        )
    return launcher


def _refuse_added_keys(prefix: str, node: DictConfig, schema: type) -> None:
    """Refuse a key that was added with `+`: nothing would read it."""
    options = [field.name for field in fields(schema) if field.name != "_target_"]
    for key in {*map(str, node)} - {*options, "_target_"}:
        near = did_you_mean(key, options)
        raise ConfigError(f"{prefix}.{key}: no such option; choose from {', '.join(options)}{near}")


def _to_overrides(params: dict[str, Any]) -> list[str]:
    """Write the parameters of a YAML file as overrides: the list `[1, 2]` becomes `key=1,2`."""
    for key, value in params.items():
        if value == []:
            raise ConfigError(f"hydra.sweeper.params.{key}=[]: must hold at least one value")
    return [
        f"{key}={','.join(map(to_override, value)) if isinstance(value, list) else to_override(value)}"
        for key, value in params.items()
    ]


def to_override(value: Any) -> str:
    """Write a value as it is typed in an override."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _last_by_key(lines: Sequence[str]) -> dict[str, Override]:
    """Return the last override of each key, in the order in which the keys first appear."""
    by_key: dict[str, Override] = {}
    for override in OverridesParser.create().parse_overrides(list(lines)):
        by_key[override.key_or_group] = override
    return by_key


def _expand_globs(overrides: dict[str, Override], loader: ConfigLoader) -> dict[str, Override]:
    """Write each `group=glob(PATTERN)` as the list of the group's options that match.

    Raises:
        ConfigError: if the key is no group, or no option matches.
    """
    expanded = {}
    for key, override in overrides.items():
        pattern: object = override.value()
        expanded[key] = override
        if isinstance(pattern, Glob):
            options = pattern.filter(loader.get_group_options(key))
            if not options:
                raise ConfigError(f"{_input_line(override)}: {key} has no such option")
            line = f"{override.get_key_element()}=choice({','.join(options)})"
            expanded[key] = OverridesParser.create().parse_override(line)
    return expanded


def _input_line(override: Override) -> str:
    assert override.input_line is not None
    return override.input_line


def _first_values(swept: dict[str, Override]) -> list[str]:
    """Return the first value of each list and range, as overrides."""
    return [
        f"{override.get_key_element()}={value}"
        for override in swept.values()
        if override.is_discrete_sweep()
        for value in islice(override.sweep_string_iterator(), 1)
    ]


def _split_overrides(name: str, text: str) -> list[str]:
    overrides = shlex.split(text)
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            raise ConfigError(
                f"hydra.sweeper.arms.{name}: {override.input_line} is a list of values;"
                " an arm takes single values, hydra.sweeper.params takes lists"
            )
    return overrides


def _seeds(master: DictConfig, typed: Override | None) -> list[int]:
    """Return the seeds of `seeds=N`, or the values of `seed`, or the one seed."""
    if typed is not None and typed.is_sweep_override():
        if master.seeds is not None:
            raise ConfigError(
                f"seeds={master.seeds} and {_input_line(typed)}: give only one of the two"
            )
        if not typed.is_discrete_sweep():
            raise ConfigError(f"{_input_line(typed)}: give a list or a range of seeds")
        return [_seed(typed, seed) for seed in typed.sweep_string_iterator()]
    first = int(master.seed) if typed is None else _seed(typed, str(typed.value()))
    count = 1 if master.seeds is None else int(master.seeds)
    if count < 1:
        raise ConfigError(f"seeds={count}: must be >= 1")
    return list(range(first, first + count))


def _seed(typed: Override, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"{_input_line(typed)}: {value!r} is not a whole number") from None


def _maximize(direction: Any, objectives: Sequence[Objective]) -> list[bool]:
    directions = list(direction) if isinstance(direction, list) else [direction]
    for word in directions:
        if word not in DIRECTIONS:
            near = did_you_mean(str(word), DIRECTIONS)
            raise ConfigError(
                f"hydra.sweeper.direction={word}: choose from {', '.join(DIRECTIONS)}{near}"
            )
    if len(directions) != len(objectives):
        raise ConfigError(
            f"hydra.sweeper.direction={direction}: {len(directions)} for {len(objectives)}"
            f" objectives ({', '.join(map(str, objectives))}); give one for each"
        )
    return [word == "maximize" for word in directions]
