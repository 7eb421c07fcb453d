"""A grid: every combination of the values, each cell once whoever asks for it, whatever the order."""

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
from llmdreamer.sweep.plan import Plan, to_override
from llmdreamer.sweep.rerun import Rerun
from llmdreamer.sweep.results_table import ResultRow, missing_objective, objective_values
from llmdreamer.sweep.run_folder import CurveReader, Curves, is_finished
from llmdreamer.sweep.run_source import RunOutcome, RunTask
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import as_typed

ENCODED = Transformer.encode  # values as Hydra would read them again
log = logging.getLogger(__name__)


@dataclass
class Cell:
    """One run of the grid: a combination with one seed."""

    overrides: list[str]
    row: ResultRow
    folder: Path | None = None  # None if its configuration is refused
    is_done: bool = False
    lock: FileLock | None = None


class Grid:
    """The source of a grid's runs. A cell's folder is named by what its configuration says, so cells
    are shared by all grids of an output root, and two drivers never run the same at once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._root = Path(plan.base.output_root).expanduser().resolve() / "cells"
        self._rerun = Rerun(plan.folder)
        self._cells: dict[str, Cell] = {}
        asked = [*combinations(plan)]
        for combination in asked:
            self._add(combination)
        if len(asked) > (count := len(self._cells)):
            told = "%d combinations are %d cells: where a value has no effect, it makes none"
            log.info(told, len(asked), count)
        self._look_for_finished()

    @property
    def rows(self) -> list[ResultRow]:
        return [cell.row for cell in self._cells.values()]

    @property
    def total(self) -> int:
        return len(self._cells)

    def _add(self, one: Combination) -> None:
        # The arm last: it is what the cell is about.
        full = [*self._plan.fixed, *one.values, *one.fixed, f"seed={one.seed}"]
        params = " ".join(one.values)
        label = f"{one.arm} {params}".strip()
        row = ResultRow(
            label=label or "-", group=label, seed=one.seed, overrides=as_typed(full),
            number=len(self._cells), arm=one.arm, params=params,
        )  # fmt: skip
        try:
            config = self._plan.compose(full)
        except ConfigError as error:
            row.state, row.cause, row.exit_code = "failed", str(error), error.exit_code
            log.error("failed %s: %s", label, error)
            self._cells[f"refused {label} {one.seed}"] = Cell(full, row, is_done=True)
            return
        name = run_name(config)
        if name in self._cells:  # the values that differ have no effect here
            return
        row.arm = one.arm or config_arm(config)
        row.label = label or row.arm
        row.group, row.folder = digest(config), str(self._root / name)
        self._cells[name] = Cell(full, row, self._root / name)

    def _look_for_finished(self) -> None:
        count = 0
        for cell in self._cells.values():
            if cell.folder is None or not self._is_finished(cell.folder):
                continue
            count += 1
            self._take_note(cell)
        if count:
            known = "were finished before (rerun=true runs them again)"
            if self._plan.rerun:
                known = "are done of the rerun that goes on"
            log.info("%d of %d cells %s", count, len(self._cells), known)

    def _is_finished(self, folder: Path) -> bool:
        return is_finished(folder) and (not self._plan.rerun or self._rerun.has(folder))

    def next_task(self) -> RunTask | None:
        if self._plan.rerun:
            self._rerun.begin()
        for name, cell in self._cells.items():
            if cell.is_done or cell.lock is not None:
                continue
            assert cell.folder is not None
            lock = FileLock(self._root / ".locks" / name)
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                cell.row.state = "elsewhere"  # another driver is at it
                continue
            if self._is_finished(cell.folder):  # by another driver
                self._take_note(cell)
                lock.release()
                continue
            if self._plan.rerun and not self._rerun.take(cell.folder):
                lock.release()
                continue
            cell.lock, cell.row.state = lock, "running"
            return RunTask(cell.folder, cell.overrides, self._tags(cell), _label(cell.row), name)
        return None

    def _tags(self, cell: Cell) -> dict[str, str]:
        row = cell.row
        tags = {"sweep": self._plan.name, "trial": str(row.number), "cell": row.group}
        return tags | {"overrides": row.overrides}

    def is_done(self) -> bool:
        return all(cell.is_done or cell.lock is not None for cell in self._cells.values())

    def should_stop(self, task: RunTask, curves: Curves) -> bool:
        return False

    def record_outcome(self, task: RunTask, outcome: RunOutcome) -> None:
        cell = self._cells[task.key]
        if outcome.kind == "finished":
            self._take_note(cell)
            return
        row = cell.row
        row.state, row.cause, row.exit_code = outcome.kind, outcome.cause, outcome.exit_code
        row.env_step = outcome.env_step
        self._let_go(cell)

    def _take_note(self, cell: Cell) -> None:
        """Fill in the row of a run that is finished."""
        assert cell.folder is not None
        tail, row = CurveReader(cell.folder), cell.row
        values = objective_values(self._plan, tail.read())
        row.env_step, row.state = tail.env_step, "finished"
        if values is None:
            row.state, row.exit_code = "failed", ConfigError.exit_code
            row.cause = missing_objective(self._plan, tail.curves)
        else:
            row.values = values
        self._let_go(cell)

    def _let_go(self, cell: Cell) -> None:
        cell.is_done = True
        if cell.lock is not None:
            cell.lock.release()

    def close(self) -> None:
        for cell in self._cells.values():
            if cell.lock is not None:
                cell.lock.release()
            if not cell.is_done:
                cell.row.state = "unfinished"
        folders = [cell.folder for cell in self._cells.values() if cell.folder is not None]
        # Of a rerun, the cells that failed may have been done without the word.
        if folders and all(is_finished(one) and self._rerun.has(one) for one in folders):
            self._rerun.end()


@dataclass(frozen=True)
class Combination:
    arm: str  # its name; empty where there are none
    values: list[str]  # one of each list, as overrides
    fixed: list[str]  # the arm's overrides
    seed: int


def combinations(plan: Plan) -> Iterator[Combination]:
    """Every combination, in the order typed, the seed varying fastest.

    Raises:
        ConfigError: if a sweep has no end of values.
    """
    lists = []
    for override in plan.swept.values():
        if not override.is_discrete_sweep():
            raise ConfigError(
                f"{override.input_line}: a grid needs single values;"
                " for a search give hydra.sweeper.n_trials=..."
            )
        key = override.get_key_element()  # with its `+`, where it adds a key
        lists.append([f"{key}={to_override(one)}" for one in override.sweep_iterator(ENCODED)])
        if not lists[-1]:
            raise ConfigError(f"{override.input_line}: holds no value")
    for arm, fixed in plan.arms.items():
        for values in itertools.product(*lists):
            for seed in plan.seeds:
                yield Combination(arm, [*values], fixed, seed)


def _label(row: ResultRow) -> str:
    return f"{row.label} seed={row.seed}"
