"""A sweep as it was asked for: the specification and the command line, read and checked as one."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from llmdreamer.config import Config, load, parse_objectives, refuse_unlogged
from llmdreamer.config.objective import Objective
from llmdreamer.sweep.settings import LAUNCHERS, RaySettings, SubmititSettings, SweeperSettings
from llmdreamer.utils.errors import ConfigError, did_you_mean

DIRECTIONS = ("maximize", "minimize")
# What only the driver reads. A run's own folder is given to it.
_DRIVERS = ("seed", "seeds", "rerun", "run_name", "resume")
_DRIVERS_HYDRA = re.compile(r"[~+]*hydra[./](sweeper|launcher|sweep|mode|run\.dir)\b")


@dataclass(frozen=True)
class Plan:
    """Everything of a sweep that is decided before its first run."""

    name: str
    folder: Path
    settings: SweeperSettings
    launcher: SubmititSettings | RaySettings | None  # None: processes are the driver's own
    objectives: list[Objective]
    maximize: list[bool]  # one for each objective
    fixed: list[str]  # overrides of every run
    swept: dict[str, Override]  # lists, ranges and intervals, by key
    arms: dict[str, list[str]]  # overrides by the arm's name; {"": []} where there is none
    seeds: list[int]
    rerun: bool
    hydra: list[str]  # Hydra's own overrides that runs need too
    base: Config  # with `fixed` alone, where that can be run; else with the first values swept
    master: DictConfig
    loader: ConfigLoader

    def compose(self, overrides: Sequence[str]) -> Config:
        """The checked configuration of a run.

        Raises:
            ConfigError: if a value is out of range or at odds with another, or an objective never logged.
            HydraException: if a key or an option does not exist.
        """
        config = load(self.loader.load_sweep_config(self.master, list(overrides)), overrides)
        refuse_unlogged(config)
        return config


def read_plan(master: DictConfig, loader: ConfigLoader, arguments: Sequence[str]) -> Plan:
    """Read `hydra.sweeper` and the overrides that were typed; these win.

    Raises:
        ConfigError: in one line, before anything has been written.
    """
    _refuse_added("hydra.sweeper", master.hydra.sweeper, SweeperSettings)
    settings = OmegaConf.to_object(master.hydra.sweeper)
    assert isinstance(settings, SweeperSettings)
    settings.sampler = settings.sampler.lower().replace("-", "")  # NSGA-II is nsgaii
    pruner = settings.pruner.lower()
    settings.pruner = "successive_halving" if pruner == "asha" else pruner
    _refuse_trust(settings)
    _check(settings)
    typed = _by_key([*_to_overrides(settings.params), *arguments])
    seeds = _seeds(master, typed.pop("seed", None))
    for key in _DRIVERS:
        typed.pop(key, None)
    swept = {key: one for key, one in typed.items() if one.is_sweep_override()}
    fixed = [_input(one) for key, one in typed.items() if key not in swept]
    arms = {name: _words(name, text) for name, text in settings.arms.items()} or {"": []}
    folder = Path(master.hydra.sweep.dir).resolve()
    objectives = parse_objectives(master.objective)

    def composed(overrides: Sequence[str]) -> Config:
        return load(loader.load_sweep_config(master, list(overrides)), fixed)

    # An arm may give what the specification leaves open, such as the environment.
    arm = next(iter(arms.values()))
    try:
        base = composed([*fixed, *arm])
    except ConfigError:
        # What is at odds with a default need not be so with the values swept: of them the first.
        base = composed([*fixed, *_first(swept), *arm])
    return Plan(
        name=settings.study_name or folder.name,
        folder=folder,
        settings=settings,
        launcher=_launcher(master),
        objectives=objectives,
        maximize=_maximize(settings.direction, objectives),
        fixed=fixed,
        swept=swept,
        arms=arms,
        seeds=seeds,
        rerun=master.rerun,
        hydra=[o for o in master.hydra.overrides.hydra if not _DRIVERS_HYDRA.match(o)],
        base=base,
        master=master,
        loader=loader,
    )


def config_source_flags(hydra: DictConfig) -> list[str]:
    """Hydra's flags that say which configuration this is, with whole paths; none for conf/config.yaml."""
    ours = Path(os.environ.get("LLMDREAMER_ROOT", ""), "conf")  # run.py sets it
    name = hydra.job.config_name
    flags = [] if name == "config" else [f"--config-name={name}"]
    for source in hydra.runtime.config_sources:
        place = source.path if source.schema == "file" else f"{source.schema}://{source.path}"
        if source.provider == "main" and Path(place) != ours:
            flags.append(f"--config-path={place}")
        if source.provider == "command-line":
            flags.append(f"--config-dir={place}")
    return flags


def _refuse_trust(settings: SweeperSettings) -> None:
    """Whom to trust is typed: what stands in a specification would look typed to its runs."""
    given = [*_to_overrides(settings.params), *shlex.split(" ".join(settings.arms.values()))]
    for line in given:
        if line.lstrip("+~").startswith("trust="):
            raise ConfigError(f"{line} stands in a file: type it instead")


def _check(settings: SweeperSettings) -> None:
    for key in ("retries", "stop_within"):
        if (value := getattr(settings, key)) < 0:
            raise ConfigError(f"hydra.sweeper.{key}={value}: must be >= 0")
    for key, value in settings.params.items():
        if isinstance(value, dict):
            inner = next(iter(value), "...")
            raise ConfigError(
                f"hydra.sweeper.params.{key} holds {value}: the key of a value is written in one,"
                f" '{key}.{inner}: VALUES', or typed as {key}.{inner}=VALUES"
            )


def _launcher(master: DictConfig) -> SubmititSettings | RaySettings | None:
    choice = master.hydra.runtime.choices.get("hydra/launcher")
    if choice == "basic":
        return None
    launcher = OmegaConf.to_object(master.hydra.launcher)
    if not isinstance(launcher, SubmititSettings | RaySettings):
        raise ConfigError(
            f"hydra/launcher={choice}: the sweeper starts its runs itself;"
            f" choose from basic, {', '.join(LAUNCHERS)} (docs/clusters.md)"
        )
    _refuse_added("hydra.launcher", master.hydra.launcher, type(launcher))
    package = "ray" if isinstance(launcher, RaySettings) else "submitit"
    if find_spec(package) is None:
        raise ConfigError(f"hydra/launcher={choice}: pip install 'llmdreamer[{package}]'")
    return launcher


def _refuse_added(where: str, node: DictConfig, kind: type) -> None:
    """Refuse a key that a plus has added: nothing would read it."""
    known = [one.name for one in fields(kind) if one.name != "_target_"]
    for key in {*map(str, node)} - {*known, "_target_"}:
        near = did_you_mean(key, known)
        raise ConfigError(f"{where}.{key}: no such option; choose from {', '.join(known)}{near}")


def _to_overrides(params: dict[str, Any]) -> list[str]:
    """Values of a YAML file as they would be typed: `[1, 2]` there is the text `1,2` here."""
    for key, value in params.items():
        if value == []:
            raise ConfigError(f"hydra.sweeper.params.{key}=[]: holds no value")
    return [
        f"{key}={','.join(map(to_override, value)) if isinstance(value, list) else to_override(value)}"
        for key, value in params.items()
    ]


def to_override(value: Any) -> str:
    """A value as it is typed on a command line."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _by_key(lines: Sequence[str]) -> dict[str, Override]:
    """The last override of each key, where the first stood."""
    found: dict[str, Override] = {}
    for override in OverridesParser.create().parse_overrides(list(lines)):
        found[override.key_or_group] = override
    return found


def _input(override: Override) -> str:
    assert override.input_line is not None
    return override.input_line


def _first(swept: dict[str, Override]) -> list[str]:
    """The first value of each list and range, as overrides."""
    return [
        f"{one.get_key_element()}={value}"
        for one in swept.values()
        if one.is_discrete_sweep()
        for value in islice(one.sweep_string_iterator(), 1)
    ]


def _words(name: str, text: str) -> list[str]:
    overrides = shlex.split(text)
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.is_sweep_override():
            raise ConfigError(
                f"hydra.sweeper.arms.{name}: {override.input_line} is a list of values;"
                " an arm takes one of each (hydra.sweeper.params takes lists)"
            )
    return overrides


def _seeds(master: DictConfig, typed: Override | None) -> list[int]:
    """`seeds=N`, or the values of `seed`; else the one seed there is."""
    if typed is not None and typed.is_sweep_override():
        if master.seeds is not None:
            raise ConfigError(f"seeds={master.seeds} and {_input(typed)}: give one of the two")
        if not typed.is_discrete_sweep():
            raise ConfigError(f"{_input(typed)}: seeds are a list or a range")
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
        raise ConfigError(f"{_input(typed)}: {value!r} is no whole number") from None


def _maximize(direction: Any, objectives: Sequence[Objective]) -> list[bool]:
    directions = list(direction) if isinstance(direction, list) else [direction]
    for one in directions:
        if one not in DIRECTIONS:
            near = did_you_mean(str(one), DIRECTIONS)
            raise ConfigError(
                f"hydra.sweeper.direction={one}: choose from {', '.join(DIRECTIONS)}{near}"
            )
    if len(directions) != len(objectives):
        raise ConfigError(
            f"hydra.sweeper.direction={direction}: {len(directions)} for {len(objectives)}"
            f" objectives ({', '.join(map(str, objectives))})"
        )
    return [one == "maximize" for one in directions]
