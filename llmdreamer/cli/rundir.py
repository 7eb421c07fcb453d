"""Choose the folder of a run or sweep. A refused command creates no folder: checks come first."""

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
from llmdreamer.sweep.run_lock import DRIVER_VARIABLE, RUN_LOCK_FILE, driver_pid
from llmdreamer.sweep.settings import SWEEPER
from llmdreamer.tracking.run_guard import file_of_a_run
from llmdreamer.tracking.trial import trial_tags
from llmdreamer.utils.command_line import argument
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import expand_user
from llmdreamer.utils.program import to_type
from llmdreamer.utils.torchrun import LAUNCH_VARIABLE, check_variables


def register_resolvers() -> None:
    """Register the resolvers that conf/config.yaml uses for folders, and its help for the command."""
    OmegaConf.register_resolver("llmdreamer.run_dir", _resolve_run_dir, replace=True)
    OmegaConf.register_resolver("llmdreamer.sweep_dir", _resolve_sweep_dir, replace=True)
    OmegaConf.register_resolver("llmdreamer.command", _resolve_command, replace=True)


def run_dir(cfg: Config, started: str) -> Path:
    """Return the folder of the run: that of `resume`, or a new one.

    Args:
        started: time in the name of a run without `run_name`.

    Raises:
        ConfigError: if the folder would be outside output_root, holds a run, or cannot be written; or
            if the run would never log its objective.
    """
    refuse_unlogged(cfg)
    if cfg.resume not in (None, AUTO):
        return Path(str(cfg.resume))
    default = f"{started}_{arm(cfg)}_{cfg.env.id}_{cfg.seed}"
    name = cfg.run_name if cfg.run_name is not None else re.sub(r"[^A-Za-z0-9._-]", "-", default)
    folder = run_folder(cfg.output_root, name)
    # With resume=auto, a run in this folder was stopped before its first checkpoint.
    if cfg.resume is None and file_of_a_run(folder) is not None:
        raise ConfigError(
            f"{folder} holds a run: resume it with {argument('resume', folder)}, or change run_name"
        )
    _check_writable(folder)
    parents = folder.resolve().parents
    _created_parents[folder.resolve()] = [parent for parent in parents if not parent.exists()]
    return folder


def already_finished(cfg: Config, used: Path) -> bool:
    """Return True if the run that `cfg` resumes is finished and `cfg` does not make it longer.

    Args:
        used: the folder that Hydra chose. If it is not the resumed one, the run is refused later.
    """
    folder = Path(str(cfg.resume))
    if cfg.resume in (None, AUTO) or not is_finished(folder):
        return False
    # Only the first process of a run writes into the run's folder.
    is_first = os.environ.get("RANK", "0") == "0" or "TORCHELASTIC_RUN_ID" not in os.environ
    if is_first and folder.resolve() != used.resolve():
        return False
    return from_yaml(folder / "config.yaml").algo.total_steps >= cfg.algo.total_steps


@contextmanager
def remove_if_refused(folder: Path) -> Iterator[None]:
    """Remove the folder of a run that is refused before it starts. The caller holds the run's lock.

    A run has started once its configuration is in the folder. A sweep's run keeps its folder,
    and so does a folder with the files of an earlier run.
    """
    held_a_run = file_of_a_run(folder) is not None
    try:
        yield
    except ConfigError:
        has_started = held_a_run or (folder / "config.yaml").exists()
        if not has_started and DRIVER_VARIABLE not in os.environ:
            _remove_unstarted(folder)
        raise


_created_parents: dict[Path, list[Path]] = {}
"""Parents of a run's folder that did not exist before this command, innermost first."""


def _remove_unstarted(folder: Path) -> None:
    """Remove Hydra's log, the lock file and the replay's metadata, then every folder left empty."""
    replays = sorted(folder.glob("replay*/**/"), reverse=True)
    metadata = (replay / "meta.json" for replay in replays)
    for file in (folder / "run.log", folder / RUN_LOCK_FILE, *metadata):
        file.unlink(missing_ok=True)
    parents = _created_parents.get(folder.resolve(), ())
    for empty in (*replays, folder / "checkpoints", folder, *parents):
        with suppress(OSError):
            empty.rmdir()


def _check_writable(folder: Path) -> None:
    existing = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    if not existing.is_dir():
        raise ConfigError(f"{folder} cannot be created: {existing} is not a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{folder} cannot be created: no permission to write in {existing}")


def _resolve_command(mode: str) -> str:
    return to_type(multirun=mode == "sweep")


def _check_environment() -> None:
    """Refuse variables that only torchrun or the driver of a sweep sets, with values that neither sets."""
    check_variables()
    driver_pid()
    trial_tags()


def _resolve_run_dir(started: str, _root_: DictConfig) -> str:
    # Hydra resolves this before it creates the folder, and may resolve it again during the run.
    if not OmegaConf.is_missing(_root_.hydra.runtime, "output_dir"):
        return str(_root_.hydra.runtime.output_dir)
    _check_environment()
    rank = os.environ.get("RANK", "0")
    if LAUNCH_VARIABLE in os.environ and rank != "0":
        # The first process chooses the run's folder and sends it to the others once they are connected.
        load(_root_, _root_.hydra.overrides.task)
        return tempfile.mkdtemp(prefix=f"llmdreamer-process-{rank}-")
    return str(run_dir(load(_root_, _root_.hydra.overrides.task), started))


def sweep_name(choice: str | None, typed: Sequence[str], flags: Sequence[str] = ()) -> str:
    """Name a sweep so that the same command, or one with other values in its lists, finds it again.

    Args:
        choice: the specification (`sweeps=NAME`); if given, it is the name.
        typed: the typed overrides. The keys with lists make the readable part; the values do not matter.
        flags: typed flags of Hydra, which are part of the digest.
    """
    if choice is not None:
        return choice
    overrides = OverridesParser.create().parse_overrides(list(typed))
    lists = [o.key_or_group for o in overrides if o.is_sweep_override()]
    ignored = ("rerun", "threads", "device", "trust")
    singles = sorted(
        str(o.input_line)
        for o in overrides
        if not o.is_sweep_override() and o.key_or_group not in ignored
    )
    name = "-".join(key.rpartition(".")[2] for key in lists) or "runs"
    digest = hashlib.sha256(" ".join([*lists, *singles, *flags]).encode()).hexdigest()[:6]
    return re.sub(r"[^A-Za-z0-9._-]", "-", f"{name[:60]}_{digest}")


def _resolve_sweep_dir(started: str, *, _root_: DictConfig) -> str:
    hydra = _root_.hydra
    name = OmegaConf.select(hydra, "sweeper.study_name")  # None for sweepers without this key
    if hydra.runtime.choices.get("hydra/sweeper") != SWEEPER:
        name = started  # Hydra's own sweepers start again each time, in folders 0, 1, ...
    elif name is None:
        choice = hydra.runtime.choices.get("sweeps")
        name = sweep_name(choice, hydra.overrides.task, config_source_flags(hydra))
    elif not FOLDER_NAME.fullmatch(name) or name in {".", ".."}:
        raise ConfigError(
            f"hydra.sweeper.study_name={name!r}:"
            " must be 1 to 100 of the characters A-Z a-z 0-9 . _ -"
        )
    return str(expand_user(_root_.output_root) / "sweeps" / name)
