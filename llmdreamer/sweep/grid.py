"""A grid: every combination of values is a cell, and each cell is run once.

Cells are identified by their configuration, not by the command or the order of its values.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from hydra.core.override_parser.types import Transformer

from llmdreamer.config import arm as config_arm
from llmdreamer.config.identity import digest, run_name
from llmdreamer.sweep.folder_wait import FolderWait
from llmdreamer.sweep.plan import Plan, to_override
from llmdreamer.sweep.rerun import Rerun
from llmdreamer.sweep.results_table import (
    ResultRow,
    make_shortener,
    missing_objective,
    objective_values,
)
from llmdreamer.sweep.run_folder import CurveReader, Curves, is_finished
from llmdreamer.sweep.run_source import RunOutcome, RunTask
from llmdreamer.tracking.trial import VARIANT_TAG
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import expand_user
from llmdreamer.utils.redact import as_typed, redact_message

HYDRA_SYNTAX = Transformer.encode  # writes values so that Hydra's parser can read them again
log = logging.getLogger(__name__)


@dataclass
class Cell:
    """One run of the grid: a combination of values with one seed."""

    overrides: list[str]
    row: ResultRow
    folder: Path | None = None  # None if its configuration is refused
    is_done: bool = False
    lock: FileLock | None = None  # held while this driver runs the cell
    folder_wait: FolderWait | None = None  # while a process of another driver holds the folder


class Grid:
    """Source of a grid's runs.

    A cell's folder is named after its configuration. All grids below an output root therefore share
    their cells, and a lock keeps two drivers from running the same cell at once.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._root = expand_user(plan.base.output_root).resolve() / "cells"
        self._rerun = Rerun(plan.folder)
        self._shorten = make_shortener(plan.swept)
        self._cells: dict[str, Cell] = {}
        all_combinations = [*combinations(plan)]
        for combination in all_combinations:
            self._add(combination)
        if len(all_combinations) > (count := len(self._cells)):
            message = "%d combinations are %d cells: values without effect add no cell"
            log.info(message, len(all_combinations), count)
        self._find_finished()

    @property
    def rows(self) -> list[ResultRow]:
        return [cell.row for cell in self._cells.values()]

    @property
    def total(self) -> int:
        return len(self._cells)

    def _add(self, combination: Combination) -> None:
        # The arm's overrides come last and take precedence: they define the cell's arm.
        fixed, values = self._plan.fixed, combination.values
        overrides = [*fixed, *values, *combination.arm_overrides, f"seed={combination.seed}"]
        params = " ".join(values)
        label = f"{combination.arm} {params}".strip()
        row = ResultRow(
            label=label or "-", group=label, seed=combination.seed, overrides=as_typed(overrides),
            number=len(self._cells), arm=combination.arm, params=params,
        )  # fmt: skip
        try:
            config = self._plan.compose(overrides)
        except ConfigError as error:
            row.state, row.cause, row.exit_code = "failed", str(error), error.exit_code
            log.error("failed %s: %s", label, error)
            name = f"refused {label} {combination.seed}"
            self._cells[name] = Cell(overrides, row, is_done=True)
            return
        name = run_name(config)
        if name in self._cells:  # the values that differ have no effect here
            return
        row.arm = combination.arm or config_arm(config)
        row.label = label or row.arm
        row.group, row.folder = digest(config), str(self._root / name)
        self._cells[name] = Cell(overrides, row, self._root / name)

    def _find_finished(self) -> None:
        count = 0
        for cell in self._cells.values():
            if cell.folder is None or not self._is_finished(cell.folder):
                continue
            count += 1
            self._record_finished(cell)
        if count:
            message = "were finished before (rerun=true runs them again)"
            if self._plan.rerun:
                message = "are already done in this rerun"
            log.info("%d of %d cells %s", count, len(self._cells), message)

    def _is_finished(self, folder: Path) -> bool:
        return is_finished(folder) and (not self._plan.rerun or self._rerun.includes(folder))

    def next_task(self) -> RunTask | None:
        if self._plan.rerun:
            self._rerun.start_or_join()
        for name, cell in self._cells.items():
            if cell.is_done or cell.lock is not None:
                continue
            assert cell.folder is not None
            lock = FileLock(self._root / ".locks" / name)
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                cell.row.state = "other_driver"
                continue
            if self._is_finished(cell.folder):  # by another driver
                self._record_finished(cell)
                lock.release()
                continue
            if self._plan.rerun and not self._claim_for_rerun(cell, cell.folder):
                lock.release()
                continue
            cell.lock, cell.row.state = lock, "running"
            return RunTask(cell.folder, cell.overrides, self._tags(cell), _label(cell.row), name)
        return None

    def _claim_for_rerun(self, cell: Cell, folder: Path) -> bool:
        """Claim the folder for the rerun; False while a process holds it, as an orphan may."""
        if self._rerun.claim(folder):
            return True
        if cell.folder_wait is None:
            stop_within = self._plan.settings.stop_within
            cell.folder_wait = FolderWait(folder, _label(cell.row), stop_within)
        cell.folder_wait.is_over()
        return False

    def _tags(self, cell: Cell) -> dict[str, str]:
        row = cell.row
        words = [row.arm if self._plan.settings.arms else "", self._shorten(row.params)]
        variant = " ".join(filter(None, [*words, f"seed={row.seed}"]))
        return {
            "sweep": self._plan.name,
            "trial": str(row.number),
            "cell": row.group,
            "overrides": row.overrides,
            VARIANT_TAG: redact_message(variant),
        }

    def is_done(self) -> bool:
        return all(cell.is_done or cell.lock is not None for cell in self._cells.values())

    def should_stop(self, task: RunTask, curves: Curves) -> bool:
        return False

    def record_outcome(self, task: RunTask, outcome: RunOutcome) -> None:
        cell = self._cells[task.key]
        if outcome.kind == "finished":
            self._record_finished(cell)
            return
        row = cell.row
        row.state, row.cause, row.exit_code = outcome.kind, outcome.cause, outcome.exit_code
        row.env_step = outcome.env_step
        self._mark_done(cell)

    def _record_finished(self, cell: Cell) -> None:
        """Fill in the row of a finished run. Without a value of the objective, the run has failed."""
        assert cell.folder is not None
        reader, row = CurveReader(cell.folder), cell.row
        try:
            values = objective_values(self._plan, reader.read())
        except ConfigError as error:  # the file of metrics is damaged
            row.state, row.cause, row.exit_code = "failed", str(error), 1
            self._mark_done(cell)
            return
        row.env_step, row.state = reader.env_step, "finished"
        if values is None:
            row.state, row.exit_code = "failed", ConfigError.exit_code
            row.cause = missing_objective(self._plan, reader.curves)
        else:
            row.values = values
        self._mark_done(cell)

    def _mark_done(self, cell: Cell) -> None:
        cell.is_done = True
        if cell.lock is not None:
            cell.lock.release()

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        for cell in self._cells.values():
            if cell.lock is not None:
                cell.lock.release()
            if not cell.is_done:
                cell.row.state = "unfinished"
        folders = [cell.folder for cell in self._cells.values() if cell.folder is not None]
        # Checked without `rerun=true` too: that command may have completed the cells that failed.
        if folders and all(is_finished(f) and self._rerun.includes(f) for f in folders):
            self._rerun.finish()


@dataclass(frozen=True)
class Combination:
    arm: str  # its name; empty without arms
    values: list[str]  # one value of each list, as overrides
    arm_overrides: list[str]
    seed: int


def combinations(plan: Plan) -> Iterator[Combination]:
    """Generate every combination in the order typed. The seed varies fastest.

    Raises:
        ConfigError: if a sweep has infinitely many values, or none.
    """
    value_lists = []
    for override in plan.swept.values():
        if not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.input_line}: a grid needs single values;"
                " for a search give hydra.sweeper.n_trials=..."
            )
        key = override.get_key_element()  # with its `+`, if it adds a key
        value_lists.append(
            [f"{key}={to_override(value)}" for value in override.sweep_iterator(HYDRA_SYNTAX)]
        )
        if not value_lists[-1]:
            raise ConfigError(f"{override.input_line}: must hold at least one value")
    for arm, arm_overrides in plan.arms.items():
        for values in itertools.product(*value_lists):
            for seed in plan.seeds:
                yield Combination(arm, [*values], arm_overrides, seed)


def _label(row: ResultRow) -> str:
    return f"{row.label} seed={row.seed}"
