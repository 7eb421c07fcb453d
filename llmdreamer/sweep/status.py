"""Reads the progress of a sweep from the files of its driver and its runs, during the sweep or after.

The driver writes `sweep.json` (the command) and `results.csv` (the runs and their results) to the
sweep's folder. The rest comes from the runs' folders. Nothing is written and no database is opened.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmdreamer.config import parse_objectives
from llmdreamer.sweep.driver_lock import is_locked, live_drivers
from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.results_table import RESULTS_FILE, ResultRow, read_results
from llmdreamer.sweep.run_folder import CurveReader
from llmdreamer.sweep.run_lock import RUN_LOCK_FILE
from llmdreamer.tracking.record import RunFiles, RunRecord, load
from llmdreamer.utils.errors import ConfigError, did_you_mean
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.program import typed_words
from llmdreamer.utils.redact import as_typed

HEADER_FILE = "sweep.json"
END_STATES = ("finished", "pruned", "failed")


@dataclass
class SweepHeader:
    """The request of a sweep, as its last driver read it."""

    command: str  # without passwords
    total: int  # runs of a grid, trials of a study
    objective: str
    maximize: list[bool]
    seeds: list[int]


@dataclass
class RunStatus:
    """Progress of a run, or of a trial over several seeds."""

    number: int
    arm: str
    params: str
    seed: str  # the seed, or how many of a trial's seeds are done
    state: str  # waiting | starting | running | finished | pruned | failed | stopped
    env_step: int
    total_env_steps: int | None  # None until the run has recorded it
    values: list[float | None]  # of the objectives, so far
    seconds: float | None  # from its first start to its end or to now
    seconds_left: float | None  # estimated from the speed of the newest records
    folder: str
    cause: str = ""


@dataclass
class SweepStatus:
    """Progress of a sweep."""

    name: str
    header: SweepHeader
    drivers: list[str]  # the live ones
    runs: list[RunStatus]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def write_header(plan: Plan, total: int) -> SweepHeader:
    """Write sweep.json into the sweep's folder."""
    header = SweepHeader(
        command=as_typed(typed_words()),
        total=total,
        objective=",".join(map(str, plan.objectives)),
        maximize=plan.maximize,
        seeds=plan.seeds,
    )
    write_atomically(plan.folder / HEADER_FILE, json.dumps(asdict(header), indent=1) + "\n")
    return header


def find_sweep(name: str, root: Path) -> Path:
    """Return the folder of a sweep, given by its path or by its name below `root`/sweeps.

    Raises:
        ConfigError: if there is no such sweep. The message names those that exist.
    """
    for folder in (Path(name), root / "sweeps" / name):
        if (folder / HEADER_FILE).exists() or (folder / RESULTS_FILE).exists():
            return folder.resolve()
    names = sweep_names(root)
    if not names:
        raise ConfigError(
            f"there is no sweep {name}: {root / 'sweeps'} holds none;"
            " give its folder, or --root, the output_root of the sweep"
        )
    near = did_you_mean(name, names)
    raise ConfigError(f"there is no sweep {name}; choose from {', '.join(names)}{near}")


def sweep_names(root: Path) -> list[str]:
    """Return the names of the sweeps below an output root, sorted."""
    files = [*root.glob(f"sweeps/*/{RESULTS_FILE}"), *root.glob(f"sweeps/*/{HEADER_FILE}")]
    return sorted({file.parent.name for file in files})


def latest_sweep(root: Path) -> Path | None:
    """Return the folder of the sweep below an output root that started last, None without one."""
    # A driver writes the header when it starts. A sweep by Hydra's own sweepers has only a table.
    started = {
        file.parent: file.stat().st_mtime
        for name in (RESULTS_FILE, HEADER_FILE)
        for file in root.glob(f"sweeps/*/{name}")
    }
    return max(started, key=lambda folder: started[folder], default=None)


@dataclass
class StatusReader:
    """Reads the progress of a sweep. Further calls read only what is new in the curves."""

    folder: Path
    _curve_readers: dict[Path, CurveReader] = field(default_factory=dict)

    def read(self) -> SweepStatus:
        """Read the files of the driver and of the runs.

        Raises:
            ConfigError: if they are not those of a sweep.
        """
        header = load(SweepHeader, self.folder / HEADER_FILE)
        if header is None:
            raise ConfigError(f"{self.folder} has no {HEADER_FILE}: start the sweep again")
        if len(parse_objectives(header.objective)) != len(header.maximize):
            raise ConfigError(
                f"{self.folder / HEADER_FILE} is damaged (maximize: needs one value for each objective):"
                " start the sweep again"
            )
        table = self.folder / RESULTS_FILE
        try:
            rows = read_results(table) if table.exists() else []
        except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
            raise ConfigError(f"{table} cannot be read: {error}") from error
        return self.read_runs(header, rows)

    def read_runs(self, header: SweepHeader, rows: Sequence[ResultRow]) -> SweepStatus:
        """Read the folders of the runs in these rows."""
        drivers = live_drivers(self.folder)
        runs = [self._run_status(header, row, has_driver=bool(drivers)) for row in rows]
        return SweepStatus(self.folder.name, header, drivers, runs)

    def _run_status(self, header: SweepHeader, row: ResultRow, *, has_driver: bool) -> RunStatus:
        has_seeds = row.seed is None
        folder = Path(row.folder)
        folders = [folder / f"seed-{seed}" for seed in header.seeds] if has_seeds else [folder]
        if not row.folder:  # its configuration was refused
            folders = []
        has_result = row.state in END_STATES and bool(row.values)
        runs = [self._read_folder(path, header, has_result=has_result) for path in folders]
        done = sum(run.state == "finished" for run in runs)
        status = RunStatus(
            number=row.number,
            arm=row.arm or next((run.arm for run in runs if run.arm), ""),
            params=row.params,
            seed=f"{done} of {len(folders)}" if has_seeds else str(row.seed),
            state=_combined_state([run.state for run in runs], row.state, has_driver=has_driver),
            env_step=sum(run.env_step for run in runs) or row.env_step,
            total_env_steps=_total_env_steps(runs),
            values=[*row.values] or _means([run.values for run in runs]),
            seconds=max((run.seconds for run in runs if run.seconds is not None), default=None),
            seconds_left=None,
            folder=row.folder,
            cause=row.cause or next((run.damage for run in runs if run.damage), ""),
        )
        if status.state == "running":
            estimates = [run.seconds_left for run in runs if run.seconds_left is not None]
            status.seconds_left = max(estimates, default=None)
        return status

    def _read_folder(self, folder: Path, header: SweepHeader, *, has_result: bool) -> _FolderStatus:
        """Read a run's folder. The curves are skipped if the result is already in the table."""
        run = _FolderStatus()
        try:
            self._fill(run, folder, header, has_result=has_result)
        except (ConfigError, OSError) as error:
            run.damage = str(error)
        return run

    def _fill(
        self, run: _FolderStatus, folder: Path, header: SweepHeader, *, has_result: bool
    ) -> None:
        """Fill in the progress, up to the first file that is damaged.

        Raises:
            ConfigError: if a file is damaged.
        """
        if is_locked(folder / RUN_LOCK_FILE):
            run.state = "running"
        record = load(RunRecord, RunFiles(folder).run_record)
        if record is not None:
            run.take_record(record)
            if run.state != "running":
                run.state = "finished" if record.status == "FINISHED" else "stopped"
        if run.state == "waiting" or (has_result and run.state != "running"):
            return
        reader = self._curve_readers.setdefault(folder, CurveReader(folder))
        curves = reader.read()
        run.env_step = reader.env_step
        if run.state == "running" and run.total_env_steps is not None:
            # Each process of a run rewrites the record when it starts.
            started_at = RunFiles(folder).run_record.stat().st_mtime
            speed = reader.env_steps_per_second(since=started_at)
            steps_left = max(0, run.total_env_steps - run.env_step)
            run.seconds_left = steps_left / speed if speed is not None else None
        if run.state == "stopped" and reader.last_time is not None and record is not None:
            run.seconds = reader.last_time - record.started
        for objective, maximize in zip(
            parse_objectives(header.objective), header.maximize, strict=True
        ):
            curve = curves.get(objective.metric)
            run.values.append(objective.value(curve, maximize=maximize) if curve else None)


@dataclass
class _FolderStatus:
    """Progress of the one run whose folder was read."""

    state: str = "waiting"
    arm: str = ""
    env_step: int = 0
    total_env_steps: int | None = None
    values: list[float | None] = field(default_factory=list)
    seconds: float | None = None
    seconds_left: float | None = None
    damage: str = ""  # in one line, if a file of the run is damaged

    def take_record(self, record: RunRecord) -> None:
        self.arm = record.tags.get("arm", "")
        policy_steps = record.params.get("algo.total_steps")
        action_repeat = record.params.get("env.action_repeat")
        if isinstance(policy_steps, int) and isinstance(action_repeat, int):
            self.total_env_steps = policy_steps * action_repeat
        self.seconds = (record.ended or time.time()) - record.started


def _combined_state(runs: Sequence[str], recorded: str, *, has_driver: bool) -> str:
    """Combine the states of the runs' folders with the state that the driver recorded.

    The record is as old as the driver's last event, so a process that runs now takes precedence.
    """
    if "running" in runs:
        return "running"
    if recorded in END_STATES:
        return recorded
    if runs and all(run == "finished" for run in runs):
        return "finished"
    if has_driver:
        return "starting" if recorded in ("running", "other_driver") else "waiting"
    return "stopped" if any(run != "waiting" for run in runs) else "waiting"


def _total_env_steps(runs: Sequence[_FolderStatus]) -> int | None:
    totals = [run.total_env_steps for run in runs if run.total_env_steps is not None]
    return max(totals) * len(runs) if totals else None


def _means(values: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Return the mean of each objective over the runs that have a value."""
    columns = zip(*filter(None, values), strict=True)
    means: list[float | None] = []
    for column in columns:
        numbers = [value for value in column if value is not None]
        means.append(sum(numbers) / len(numbers) if numbers else None)
    return means
