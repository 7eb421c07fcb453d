"""Runs a sweep from its specification to its table. Hydra's sweeper plugin calls `sweep`."""

from __future__ import annotations

import errno
import itertools
import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from llmdreamer.config.checks import FOLDER_NAME
from llmdreamer.sweep.driver_lock import DriverLock
from llmdreamer.sweep.grid import Grid
from llmdreamer.sweep.hydra_callback import ParentRunCallback
from llmdreamer.sweep.launchers.base import Launcher, make_launcher
from llmdreamer.sweep.plan import Plan, config_source_flags, read_plan
from llmdreamer.sweep.pool import Pool, available_cores
from llmdreamer.sweep.progress import ProgressReporter
from llmdreamer.sweep.results_table import ResultRow, print_results, write_results
from llmdreamer.sweep.run_source import ChainedSources, RunSource
from llmdreamer.sweep.settings import RaySettings, SubmititSettings
from llmdreamer.sweep.summary import summarize
from llmdreamer.sweep.worker import Slot, WorkerOptions
from llmdreamer.tracking import resolve_uri
from llmdreamer.tracking.store import ui_command
from llmdreamer.utils.errors import ConfigError, first_line
from llmdreamer.utils.program import child_program

log = logging.getLogger(__name__)
_DEVICE = re.compile(r"\d+$|GPU-|MIG-")


class SweepFailed(Exception):
    """Some runs of a sweep failed. The table, printed before, names them."""

    def __init__(self, rows: Sequence[ResultRow]) -> None:
        failed = [row for row in rows if row.state == "failed"]
        super().__init__(f"{len(failed)} of {len(rows)} runs failed")
        self.exit_code = next((row.exit_code for row in failed if row.exit_code > 0), 1)


class SweepInterrupted(Exception):
    """The driver could not write a file. Its runs are stopped; the same command continues the sweep."""

    exit_code = 1


DrawStudy = Callable[[str, str, Path], object]
"""Writes the figures of a study into a folder; takes the study's storage and name, and the folder."""


def sweep(
    master: DictConfig,
    loader: ConfigLoader,
    arguments: Sequence[str],
    draw_study: DrawStudy | None = None,
) -> None:
    """Run a sweep, or the rest of one that was stopped.

    Args:
        draw_study: draws each study at the end, for the sweep's run in MLflow.

    Raises:
        ConfigError: for a mistake in the command or the specification, before any run.
        SweepFailed: at the end, if a run failed.
        SweepInterrupted: if the disk is full, or a file of the sweep cannot be read or written.
        KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM; the runs have written checkpoints.
    """
    plan = read_plan(master, loader, arguments)
    uri = resolve_uri(plan.base.tracking.uri, Path.cwd())  # refused before anything is written
    slots = make_slots(plan)
    source = make_source(plan)
    launcher = make_launcher(plan)
    try:
        pool = Pool(slots, make_worker_options(plan, launcher))
        plan.folder.mkdir(parents=True, exist_ok=True)
        parent_run = ParentRunCallback()
        if "parent_run" in master.hydra.callbacks:  # else the user removed it
            parent_run.begin(master)
        try:
            _run(plan, source, pool, uri)
        except Exception as error:
            if (cause := disk_full_message(error)) is not None:
                message = f"the disk is full ({cause}): free some space"
            elif isinstance(error, OSError):
                message = f"{error.filename or plan.folder}: {error.strerror or error}: repair it"
            else:
                raise
            raise SweepInterrupted(f"{message} and repeat the command to continue") from error
        finally:
            parent_run.end(
                master,
                lambda: summarize(plan, source.rows),
                lambda folder: draw_studies(plan, draw_study, folder),
            )
    finally:
        launcher.close()


def _run(plan: Plan, source: RunSource, pool: Pool, uri: str) -> None:
    lock = DriverLock.announce(plan.folder)
    reporter = ProgressReporter(plan, source)
    try:
        with reporter:
            pool.run(source, reporter)
    finally:
        lock.close()
        rows = source.rows
        print_results(plan, rows)  # first, because writing may fail
        log.info("results    %s", write_results(plan, rows))
        log.info("MLflow UI  %s", ui_command(uri))
    if any(row.state == "failed" for row in rows):
        raise SweepFailed(rows)


def disk_full_message(error: BaseException) -> str | None:
    """Return the message of the full-disk error among an error and its causes, None without one."""
    link: BaseException | None = error
    while link is not None:
        is_os_error = isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT)
        if is_os_error or "disk is full" in str(link):  # SQLite's wording
            return first_line(link)
        link = link.__cause__ or link.__context__
    return None


def make_source(plan: Plan) -> RunSource:
    """Make a grid or, if `n_trials` is set, one study or a study for each arm.

    Raises:
        ConfigError: if a study has arms, but not `study_per_arm`, or an arm's name is no folder name.
    """
    if plan.settings.n_trials is None:
        return Grid(plan)
    from llmdreamer.sweep.studies.study import Study  # imports Optuna, which takes a second

    if not plan.settings.study_per_arm:
        if list(plan.arms) != [""]:
            raise ConfigError(
                "hydra.sweeper.arms: a study searches within an arm;"
                " set hydra.sweeper.study_per_arm=true, or n_trials=null for a grid"
            )
        return Study(plan)
    if invalid := [arm for arm in plan.arms if not FOLDER_NAME.fullmatch(arm)]:
        raise ConfigError(
            f"hydra.sweeper.arms: {invalid[0]!r} names a folder;"
            " use 1 to 100 of the characters A-Z a-z 0-9 . _ -"
        )
    return ChainedSources([Study(plan, arm, f"{plan.name}-{arm}") for arm in plan.arms])


def draw_studies(plan: Plan, draw_study: DrawStudy | None, folder: Path) -> None:
    """Draw the studies of a sweep: into `folder`, or with a study for each arm into a folder for each."""
    if plan.settings.n_trials is None or draw_study is None:
        return
    if not plan.settings.study_per_arm:
        draw_study(plan.settings.storage or str(plan.folder), plan.name, folder)
        return
    for arm in plan.arms:
        storage = plan.settings.storage or str(plan.folder / arm)
        draw_study(storage, f"{plan.name}-{arm}", folder / arm)


def make_slots(plan: Plan) -> list[Slot]:
    """Make the slots: on the devices in turn, or with equal shares of the cores.

    Raises:
        ConfigError: if a number is too small, or the devices have no room for `n_jobs` runs.
    """
    settings = plan.settings
    if settings.per_device < 1:
        raise ConfigError(f"hydra.sweeper.per_device={settings.per_device}: must be >= 1")
    if plan.launcher is not None and settings.devices:
        raise ConfigError(
            f"hydra.sweeper.devices={settings.devices}: the launcher's scheduler chooses devices"
            " (gpus_per_node, num_gpus); leave it out"
        )
    devices: list[str | None] = [*visible_devices(settings.devices)] * settings.per_device
    count = settings.n_jobs if settings.n_jobs is not None else max(1, len(devices))
    if count < 1:
        raise ConfigError(f"hydra.sweeper.n_jobs={count}: must be >= 1")
    if devices and count > len(devices):
        raise ConfigError(
            f"hydra.sweeper.n_jobs={count}: must be <= {len(devices)}, the number of devices times"
            f" hydra.sweeper.per_device={settings.per_device}"
        )
    if plan.launcher is not None:
        return [Slot(None, cores_per_run(plan.launcher))] * count
    variable = os.environ.get("OMP_NUM_THREADS")
    threads = (
        int(variable) if variable and variable.isdigit() else max(1, available_cores() // count)
    )
    return [Slot(device, threads) for device in (devices or [None] * count)[:count]]


def visible_devices(indices: Sequence[int]) -> list[str]:
    """Name devices for CUDA_VISIBLE_DEVICES, by index among those that the driver itself may use.

    Raises:
        ConfigError: if the driver's own CUDA_VISIBLE_DEVICES has fewer devices.
    """
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        return [str(index) for index in indices]
    # Like CUDA, stop at the first entry that is no device: `-1`, or Slurm's `NoDevFiles`.
    entries = (entry.strip() for entry in variable.split(","))
    names = [*itertools.takewhile(_DEVICE.match, entries)]
    if any(not 0 <= index < len(names) for index in indices):
        raise ConfigError(
            f"hydra.sweeper.devices={list(indices)}: CUDA_VISIBLE_DEVICES={variable} names"
            f" {len(names)}, counted from 0"
        )
    return [names[index] for index in indices]


def cores_per_run(launcher: SubmititSettings | RaySettings) -> int:
    """Return the number of CPU cores that the launcher gives a run, at least 1."""
    if isinstance(launcher, SubmititSettings):
        return max(1, launcher.cpus_per_task or 1)
    return max(1, int(launcher.remote["num_cpus"] or 1))


def make_worker_options(plan: Plan, launcher: Launcher) -> WorkerOptions:
    """Collect what all workers of the sweep share.

    Raises:
        ConfigError: if the program in `hydra.sweeper.command` does not exist.
    """
    settings = plan.settings
    if settings.command and shutil.which(settings.command[0]) is None:
        raise ConfigError(f"hydra.sweeper.command: there is no program {settings.command[0]}")
    return WorkerOptions(
        command=[*(settings.command or child_program()), *config_source_flags(plan.master.hydra)],
        launcher=launcher,
        hydra_overrides=plan.hydra_overrides,
        objective=plan.base.objective,
        # A number of threads that the user sets, here or for OpenMP, takes precedence.
        set_threads=plan.base.threads is None and "OMP_NUM_THREADS" not in os.environ,
        retries=settings.retries,
        stop_within=settings.stop_within,
    )
