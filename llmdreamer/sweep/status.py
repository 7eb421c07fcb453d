"""How far a sweep is, read from what its driver and its runs have written: while it runs, and after.

The sweep's folder holds `sweep.json` (what was asked) and `results.csv` (the runs and their ends),
both by the driver; each run's folder says the rest. Nothing is written, no database is opened.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from llmdreamer.config import parse_objectives
from llmdreamer.sweep.driver_lock import is_locked, live_drivers
from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.results_table import RESULTS_FILE, ResultRow, read_results
from llmdreamer.sweep.run_folder import CurveReader, is_finished
from llmdreamer.sweep.run_lock import RUN_LOCK_FILE
from llmdreamer.tracking.record import RunFiles, Wanted, load
from llmdreamer.utils.errors import ConfigError, did_you_mean
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.redact import redact

HEADER = "sweep.json"
ENDED = ("finished", "pruned", "failed")


@dataclass
class SweepHeader:
    """What was asked of a sweep, as its last driver understood it."""

    command: str  # without passwords
    total: int  # runs of a grid, trials of a study
    objective: str
    maximize: list[bool]
    seeds: list[int]


@dataclass
class RunStatus:
    """How far one run is; of a study with several seeds, one trial."""

    number: int
    arm: str
    params: str
    seed: str  # the seed, or how many of a trial's seeds are done
    state: str  # waiting | starting | running | finished | pruned | failed | stopped
    env_step: int
    total: int | None  # env steps; None until the run has said so
    values: list[float | None]  # of the objectives, so far
    seconds: float | None  # since it first began, to its end or to now
    left: float | None  # seconds that the steps to come will take, at the pace of the last ones
    folder: str
    cause: str = ""


@dataclass
class SweepStatus:
    name: str
    header: SweepHeader
    drivers: list[str]
    lines: list[RunStatus]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def write_header(plan: Plan, total: int) -> SweepHeader:
    header = SweepHeader(
        command=redact(shlex.join(["python", *sys.argv])),
        total=total,
        objective=",".join(map(str, plan.objectives)),
        maximize=plan.maximize,
        seeds=plan.seeds,
    )
    write_atomically(plan.folder / HEADER, json.dumps(asdict(header), indent=1) + "\n")
    return header


def find(name: str, root: Path) -> Path:
    """The folder of a sweep, by its path or by its name below `root`/sweeps.

    Raises:
        ConfigError: if there is no such sweep; it names those that are there.
    """
    for folder in (Path(name), root / "sweeps" / name):
        if (folder / HEADER).exists() or (folder / RESULTS_FILE).exists():
            return folder.resolve()
    there = known(root)
    if not there:
        raise ConfigError(
            f"there is no sweep {name}: {root / 'sweeps'} holds none;"
            " give its folder, or --root, the output_root of the sweep"
        )
    near = did_you_mean(name, there)
    raise ConfigError(f"there is no sweep {name}; there are {', '.join(there)}{near}")


def known(root: Path) -> list[str]:
    """The names of the sweeps below an output root."""
    found = {path.parent.name for path in root.glob(f"sweeps/*/{RESULTS_FILE}")}
    return sorted(found | {path.parent.name for path in root.glob(f"sweeps/*/{HEADER}")})


@dataclass
class StatusReader:
    """Looks at a sweep again and again; of the curves it reads what is new."""

    folder: Path
    _tails: dict[Path, CurveReader] = field(default_factory=dict)

    def look(self) -> SweepStatus:
        """What the files say.

        Raises:
            ConfigError: if they are not those of a sweep.
        """
        try:
            header = SweepHeader(**json.loads((self.folder / HEADER).read_text()))
            table = self.folder / RESULTS_FILE
            rows = read_results(table) if table.exists() else []
        except FileNotFoundError as error:  # of a version that wrote the table only
            raise ConfigError(f"{self.folder} has no {HEADER}: start the sweep again") from error
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{self.folder} cannot be read: {error}") from error
        return self.sweep(header, rows)

    def sweep(self, header: SweepHeader, rows: Sequence[ResultRow]) -> SweepStatus:
        alive = live_drivers(self.folder)
        lines = [self._line(header, row, driven=bool(alive)) for row in rows]
        return SweepStatus(self.folder.name, header, alive, lines)

    def _line(self, header: SweepHeader, row: ResultRow, *, driven: bool) -> RunStatus:
        several = row.seed is None
        folder = Path(row.folder)
        folders = [folder / f"seed-{seed}" for seed in header.seeds] if several else [folder]
        if not row.folder:  # its configuration was refused
            folders = []
        is_known = row.state in ENDED and bool(row.values)
        runs = [self._run(one, header, is_known=is_known) for one in folders]
        done = sum(run.state == "finished" for run in runs)
        line = RunStatus(
            number=row.number,
            arm=row.arm or next((run.arm for run in runs if run.arm), ""),
            params=row.params,
            seed=f"{done} of {len(folders)}" if several else str(row.seed),
            state=_together([run.state for run in runs], row.state, driven=driven),
            env_step=sum(run.env_step for run in runs) or row.env_step,
            total=_total(runs),
            values=[*row.values] or _means([run.values for run in runs]),
            seconds=max((run.seconds for run in runs if run.seconds is not None), default=None),
            left=None,
            folder=row.folder,
            cause=row.cause,
        )
        if line.state == "running":
            line.left = max((run.left for run in runs if run.left is not None), default=None)
        return line

    def _run(self, folder: Path, header: SweepHeader, *, is_known: bool) -> _Run:
        """One run's folder. Curves are read only of runs whose result is not in the table."""
        run, wanted = _Run(), load(Wanted, RunFiles(folder).wanted)
        if is_locked(folder / RUN_LOCK_FILE):
            run.state = "running"
        elif is_finished(folder):
            run.state = "finished"
        elif wanted is not None:
            run.state = "stopped"
        if wanted is not None:
            run.arm = wanted.tags.get("arm", "")
            steps = wanted.params.get("algo.total_steps"), wanted.params.get("env.action_repeat")
            if isinstance(steps[0], int) and isinstance(steps[1], int):
                run.total = steps[0] * steps[1]
            run.seconds = (wanted.ended or time.time()) - wanted.started
        if run.state == "waiting" or (is_known and run.state != "running"):
            return run
        tail = self._tails.setdefault(folder, CurveReader(folder))
        curves = tail.read()
        run.env_step = tail.env_step
        if run.state == "running" and run.total is not None:
            # Written anew by each process of the run, as it begins.
            pace = tail.pace(since=RunFiles(folder).wanted.stat().st_mtime)
            run.left = max(0, run.total - run.env_step) / pace if pace is not None else None
        if run.state == "stopped" and tail.time is not None and wanted is not None:
            run.seconds = tail.time - wanted.started
        for objective, maximize in zip(
            parse_objectives(header.objective), header.maximize, strict=True
        ):
            curve = curves.get(objective.metric)
            run.values.append(objective.value(curve, maximize=maximize) if curve else None)
        return run


@dataclass
class _Run:
    state: str = "waiting"
    arm: str = ""
    env_step: int = 0
    total: int | None = None
    values: list[float | None] = field(default_factory=list)
    seconds: float | None = None
    left: float | None = None


def _together(runs: Sequence[str], recorded: str, *, driven: bool) -> str:
    """What the driver has written is as old as its last event: what lives now is seen in the runs."""
    if "running" in runs:
        return "running"
    if recorded in ENDED:
        return recorded
    if runs and all(run == "finished" for run in runs):
        return "finished"
    if driven:
        return "starting" if recorded in ("running", "elsewhere") else "waiting"
    return "stopped" if any(run != "waiting" for run in runs) else "waiting"


def _total(runs: Sequence[_Run]) -> int | None:
    known_ = [run.total for run in runs if run.total is not None]
    return max(known_) * len(runs) if known_ else None


def _means(values: Sequence[Sequence[float | None]]) -> list[float | None]:
    """By objective, over the runs that have one."""
    columns = [[*column] for column in zip(*filter(None, values), strict=True)]
    means: list[float | None] = []
    for column in columns:
        there = [value for value in column if value is not None]
        means.append(sum(there) / len(there) if there else None)
    return means
