"""A sweep from its specification to its table: what Hydra's sweeper plugin calls."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from llmdreamer.config.checks import NAME
from llmdreamer.sweep.driver_lock import DriverLock
from llmdreamer.sweep.grid import Grid
from llmdreamer.sweep.hydra_callback import ParentRunCallback
from llmdreamer.sweep.launchers.base import Engine, make_engine
from llmdreamer.sweep.plan import Plan, config_source_flags, read_plan
from llmdreamer.sweep.pool import Pool, cores
from llmdreamer.sweep.progress import ProgressReporter
from llmdreamer.sweep.results_table import ResultRow, show, write_results
from llmdreamer.sweep.run_source import ChainedSources, RunSource
from llmdreamer.sweep.settings import RaySettings, SubmititSettings
from llmdreamer.sweep.worker import Slot, WorkerOptions
from llmdreamer.tracking import resolve_uri
from llmdreamer.tracking.store import ui_command
from llmdreamer.utils.errors import ConfigError

log = logging.getLogger(__name__)
_DEVICE = re.compile(r"\d+$|GPU-|MIG-")


class SweepFailed(Exception):
    """Some runs of a sweep failed; the table has told which."""

    def __init__(self, rows: Sequence[ResultRow]) -> None:
        failed = [row for row in rows if row.state == "failed"]
        super().__init__(f"{len(failed)} of {len(rows)} runs failed")
        self.exit_code = next((row.exit_code for row in failed if row.exit_code > 0), 1)


class DiskFull(Exception):
    """There is no room for what a driver writes; runs have been stopped, and the same command goes on."""

    exit_code = 1


def sweep(master: DictConfig, loader: ConfigLoader, arguments: Sequence[str]) -> None:
    """Run a sweep, or what is left of it.

    Raises:
        ConfigError: for a mistake in what was asked, before any run.
        SweepFailed: at the end, if a run failed.
        DiskFull: if the disk is full.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM; runs have written checkpoints.
    """
    plan = read_plan(master, loader, arguments)
    uri = resolve_uri(plan.base.tracking.uri, Path.cwd())  # refused before anything is made
    slots = make_slots(plan)
    source = make_source(plan)
    engine = make_engine(plan)
    try:
        pool = Pool(slots, make_worker_options(plan, engine))
        plan.folder.mkdir(parents=True, exist_ok=True)
        parent = ParentRunCallback()
        if (
            "parent_run" in master.hydra.callbacks
        ):  # who takes the callback away wants no parent run
            parent.begin(master)
        try:
            _run(plan, source, pool, uri)
        except Exception as error:
            if (cause := full(error)) is None:
                raise
            raise DiskFull(
                f"the disk is full ({cause}): make room, and the same command goes on"
            ) from error
        finally:
            parent.end(master)
    finally:
        engine.close()


def _run(plan: Plan, source: RunSource, pool: Pool, uri: str) -> None:
    presence = DriverLock.announce(plan.folder)
    reporter = ProgressReporter(plan, source)
    try:
        with reporter:
            pool.run(source, reporter)
    finally:
        presence.close()
        rows = source.rows
        show(plan, rows)  # also where it cannot be written
        log.info("results    %s", write_results(plan, rows))
        log.info("MLflow UI  %s", ui_command(uri))
    if any(row.state == "failed" for row in rows):
        raise SweepFailed(rows)


def full(error: BaseException) -> str | None:
    """What an error says of a full disk, or what led to it; None if it is of something else."""
    link: BaseException | None = error
    while link is not None:
        is_ours = isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_ours or "disk is full" in str(link):  # in SQLite's words
            return str(link).splitlines()[0]
        link = link.__cause__ or link.__context__
    return None


def make_source(plan: Plan) -> RunSource:
    """A grid, or where there is a number of trials, a study, or one for each arm."""
    if plan.settings.n_trials is None:
        return Grid(plan)
    from llmdreamer.sweep.studies.study import (
        Study,  # Optuna takes a second, which a grid need not wait
    )

    if not plan.settings.study_per_arm:
        if list(plan.arms) != [""]:
            raise ConfigError(
                "hydra.sweeper.arms: a study searches within an arm;"
                " set hydra.sweeper.study_per_arm=true, or n_trials=null for a grid"
            )
        return Study(plan)
    if any(not NAME.fullmatch(arm) for arm in plan.arms):
        raise ConfigError("hydra.sweeper.arms: their names are of the characters A-Z a-z 0-9 . _ -")
    return ChainedSources([Study(plan, arm, f"{plan.name}-{arm}") for arm in plan.arms])


def make_slots(plan: Plan) -> list[Slot]:
    """The places for processes: on devices in turn, or with equal shares of the cores."""
    settings = plan.settings
    if settings.per_device < 1:
        raise ConfigError(f"hydra.sweeper.per_device={settings.per_device}: must be >= 1")
    if plan.launcher is not None and settings.devices:
        raise ConfigError(
            f"hydra.sweeper.devices={settings.devices}: of another place's devices its scheduler"
            " decides (gpus_per_node, num_gpus); leave it out"
        )
    places: list[str | None] = [*visible(settings.devices)] * settings.per_device
    count = settings.n_jobs if settings.n_jobs is not None else max(1, len(places))
    if count < 1:
        raise ConfigError(f"hydra.sweeper.n_jobs={count}: must be >= 1")
    if places and count > len(places):
        raise ConfigError(
            f"hydra.sweeper.n_jobs={count}: {len(settings.devices)} devices take"
            f" {len(places)} runs (hydra.sweeper.per_device={settings.per_device})"
        )
    if plan.launcher is not None:
        return [Slot(None, cpus(plan.launcher))] * count
    typed = os.environ.get("OMP_NUM_THREADS")
    threads = int(typed) if typed and typed.isdigit() else max(1, cores() // count)
    return [Slot(place, threads) for place in (places or [None] * count)[:count]]


def visible(devices: Sequence[int]) -> list[str]:
    """The devices as CUDA_VISIBLE_DEVICES names them, counted among those that we were given ourselves.

    Raises:
        ConfigError: if we were not given so many.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(one) for one in devices]
    # CUDA, too, stops at the first that is none: `-1`, or the `NoDevFiles` of Slurm.
    names = [*itertools.takewhile(_DEVICE.match, (name.strip() for name in given.split(",")))]
    if any(not 0 <= one < len(names) for one in devices):
        raise ConfigError(
            f"hydra.sweeper.devices={list(devices)}: CUDA_VISIBLE_DEVICES={given} names"
            f" {len(names)}, counted from 0"
        )
    return [names[one] for one in devices]


def cpus(launcher: SubmititSettings | RaySettings) -> int:
    """The cores that a run is given, at least one."""
    given = (
        launcher.cpus_per_task
        if isinstance(launcher, SubmititSettings)
        else launcher.remote["num_cpus"]
    )
    return max(1, int(given or 1))


def make_worker_options(plan: Plan, engine: Engine) -> WorkerOptions:
    settings = plan.settings
    if settings.command and shutil.which(settings.command[0]) is None:
        raise ConfigError(f"hydra.sweeper.command: there is no program {settings.command[0]}")
    own = [sys.executable, str(Path(sys.argv[0]).resolve())]
    # Who says how many threads, in the configuration or to OpenMP, is not overruled.
    ours = plan.base.threads is None and "OMP_NUM_THREADS" not in os.environ
    return WorkerOptions(
        command=[*(settings.command or own), *config_source_flags(plan.master.hydra)],
        engine=engine,
        hydra=plan.hydra,
        objective=plan.base.objective,
        set_threads=ours,
        retries=settings.retries,
        stop_within=settings.stop_within,
    )
