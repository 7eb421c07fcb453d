"""The folder of a run, decided once its configuration has passed every check and before it is made."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from llmdreamer.config import AUTO, Config, arm, from_yaml, load, refuse_unlogged, run_folder
from llmdreamer.config.checks import FOLDER_NAME
from llmdreamer.sweep.plan import config_source_flags
from llmdreamer.sweep.run_folder import is_finished
from llmdreamer.sweep.run_lock import DRIVER_VARIABLE, RUN_LOCK_FILE
from llmdreamer.sweep.settings import SWEEPER
from llmdreamer.utils.errors import ConfigError


def register_resolvers() -> None:
    """Let conf/config.yaml say `hydra.run.dir: ${llmdreamer.run_dir:<time>}`, and of sweeps alike."""
    OmegaConf.register_resolver("llmdreamer.run_dir", _resolve, replace=True)
    OmegaConf.register_resolver("llmdreamer.sweep_dir", _resolve_sweep, replace=True)


def run_dir(cfg: Config, started: str) -> Path:
    """Return the folder of the run that `cfg` describes: that of `resume`, or a new one.

    Args:
        started: the time in the name of a run that has no `run_name`.

    Raises:
        ConfigError: if the folder would lie outside output_root, holds a run, or cannot be written; or
            if the run would never log its objective.
    """
    refuse_unlogged(cfg)
    if cfg.resume not in (None, AUTO):
        return Path(str(cfg.resume))
    default = f"{started}_{arm(cfg)}_{cfg.env.id}_{cfg.seed}"
    name = cfg.run_name if cfg.run_name is not None else re.sub(r"[^A-Za-z0-9._-]", "-", default)
    folder = run_folder(cfg.output_root, name)
    # What lies there with resume=auto was stopped before its first checkpoint.
    if cfg.resume is None and (folder / "config.yaml").exists():
        raise ConfigError(f"{folder} holds a run: go on with resume={folder}, or change run_name")
    _check_writable(folder)
    _made[folder.resolve()] = [one for one in folder.resolve().parents if not one.exists()]
    return folder


def finished(cfg: Config) -> bool:
    """Return whether the run that `cfg` resumes has come to its end, and is not to be made longer."""
    folder = Path(str(cfg.resume))
    if cfg.resume in (None, AUTO) or not is_finished(folder):
        return False
    return from_yaml(folder / "config.yaml").algo.total_steps >= cfg.algo.total_steps


@contextmanager
def remove_if_refused(folder: Path) -> Iterator[None]:
    """Leave nothing of a run that is refused before it has begun; for who holds its folder.

    A run has begun once its configuration is in the folder. In a sweep the driver keeps the folder.
    """
    try:
        yield
    except ConfigError:
        if not (folder / "config.yaml").exists() and DRIVER_VARIABLE not in os.environ:
            _clear(folder)
        raise


_made: dict[Path, list[Path]] = {}
"""By a run's folder, the folders above it that were not there before this command, innermost first."""


def _clear(folder: Path) -> None:
    """Remove what Hydra, the lock and an empty replay leave, and the folders if nothing else is there."""
    replays = sorted(folder.glob("replay*/**/"), reverse=True)
    for file in (
        folder / "run.log",
        folder / RUN_LOCK_FILE,
        *(one / "meta.json" for one in replays),
    ):
        file.unlink(missing_ok=True)
    for each in (*replays, folder / "checkpoints", folder, *_made.get(folder.resolve(), ())):
        with suppress(OSError):
            each.rmdir()


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
    rank = os.environ.get("RANK", "0")
    if "TORCHELASTIC_RUN_ID" in os.environ and rank != "0":
        # The first process chooses the run's folder, and tells the others once they are connected.
        load(_root_, _root_.hydra.overrides.task)
        return tempfile.mkdtemp(prefix=f"llmdreamer-process-{rank}-")
    return str(run_dir(load(_root_, _root_.hydra.overrides.task), started))


def sweep_name(choice: str | None, typed: Sequence[str], flags: Sequence[str] = ()) -> str:
    """Name a sweep so that the same command, or one with more values in its lists, finds it again.

    Args:
        choice: the specification (`sweeps=NAME`), which is then the name.
        typed: what was typed; lists name the sweep, single values tell it from others.
        flags: of Hydra's that were typed; they tell it from others, too.
    """
    if choice is not None:
        return choice
    overrides = OverridesParser.create().parse_overrides(list(typed))
    lists = [o.key_or_group for o in overrides if o.is_sweep_override()]
    singles = sorted(
        str(o.input_line)
        for o in overrides
        if not o.is_sweep_override()
        and o.key_or_group not in ("rerun", "threads", "device", "trust")
    )
    name = "-".join(key.rpartition(".")[2] for key in lists) or "runs"
    digest = hashlib.sha256(" ".join([*lists, *singles, *flags]).encode()).hexdigest()[:6]
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{name[:60]}_{digest}")


def _resolve_sweep(started: str, *, _root_: DictConfig) -> str:
    hydra = _root_.hydra
    name = OmegaConf.select(hydra, "sweeper.study_name")  # not every sweeper has one
    if hydra.runtime.choices.get("hydra/sweeper") != SWEEPER:
        name = started  # Hydra's own sweepers begin anew each time, in folders 0, 1, ...
    elif name is None:
        choice = hydra.runtime.choices.get("sweeps")
        name = sweep_name(choice, hydra.overrides.task, config_source_flags(hydra))
    elif not FOLDER_NAME.fullmatch(name) or name in {".", ".."}:
        raise ConfigError(
            f"hydra.sweeper.study_name={name!r}:"
            " must be 1 to 100 of the characters A-Z a-z 0-9 . _ -"
        )
    return str(Path(_root_.output_root).expanduser() / "sweeps" / name)
