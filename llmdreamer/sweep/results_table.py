"""The results of a sweep: a row for every run, the same aggregated over seeds, as CSV and on screen."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmdreamer.config.objective import never_logged
from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.run_folder import Curves
from llmdreamer.utils.files import write_atomically

RESULTS_FILE = "results.csv"
# The objectives' columns stand between the two.
_BEFORE = ("label", "seed", "state", "env_step")
_AFTER = ("folder", "overrides", "cause", "number", "arm", "params")
OMITTED_COLUMNS = ("folder", "overrides", "number", "arm", "params")
"""The columns that a reader has no use for: the label says it shorter."""


@dataclass
class ResultRow:
    """A run, or a study's trial with its seeds together (`seed` is then None)."""

    label: str
    group: str  # equal for the runs that differ in the seed alone
    seed: int | None
    overrides: str
    number: int = 0  # of the trial, or of the cell's run in the order typed
    arm: str = ""
    params: str = ""  # what differs between the runs of an arm, as typed
    folder: str = ""
    state: str = "waiting"
    env_step: int = 0
    values: list[float] = field(default_factory=list)  # of the objectives; empty until finished
    cause: str = ""
    exit_code: int = 0


def objective_values(plan: Plan, curves: Curves) -> list[float] | None:
    """The objectives' values; None if one of them was never logged."""
    values = []
    for objective, maximize in zip(plan.objectives, plan.maximize, strict=True):
        if not curves.get(objective.metric):
            return None
        values.append(objective.value(curves[objective.metric], maximize=maximize))
    return values


def missing_objective(plan: Plan, curves: Curves) -> str:
    return never_logged([one.metric for one in plan.objectives if one.metric not in curves], curves)


def write_results(plan: Plan, rows: Sequence[ResultRow]) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [str(objective) for objective in plan.objectives]
    writer.writerow([*_BEFORE, *names, *_AFTER])
    for row in rows:
        values = [repr(value) for value in row.values] or [""] * len(names)
        before, after = ([_cell(row, name) for name in part] for part in (_BEFORE, _AFTER))
        writer.writerow([*before, *values, *after])
    path = plan.folder / RESULTS_FILE
    write_atomically(path, text.getvalue())
    return path


def _cell(row: ResultRow, name: str) -> object:
    return "" if (value := getattr(row, name)) is None else value


def read_results(path: Path) -> list[ResultRow]:
    """The rows as `write_results` left them. Their `group` is not told there.

    Raises:
        ValueError: if the file is none of ours.
    """
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        if columns[:4] != list(_BEFORE) or "folder" not in columns:
            raise ValueError(f"{path} is not the table of a sweep")
        objectives = columns[len(_BEFORE) : columns.index("folder")]
        return [_row(cells, objectives) for cells in reader]


def _row(cells: dict[str, str], objectives: Sequence[str]) -> ResultRow:
    return ResultRow(
        label=cells["label"],
        group="",
        seed=int(cells["seed"]) if cells["seed"] else None,
        overrides=cells["overrides"],
        number=int(cells.get("number") or 0),
        arm=cells.get("arm", ""),
        params=cells.get("params", ""),
        folder=cells["folder"],
        state=cells["state"],
        env_step=int(cells["env_step"]),
        values=[float(cells[name]) for name in objectives if cells[name]],
        cause=cells["cause"],
    )


def show(plan: Plan, rows: Sequence[ResultRow], console: Console | None = None) -> None:
    """Print what came out, and below it every failure with its cause."""
    console = console or Console()
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    seeded = any(len(group) > 1 for group in groups.values())
    # As texts: in a string, rich takes `[c_attn]` for a style.
    table = Table(title=Text(plan.name), title_justify="left")
    table.add_column("run" if not seeded else "cell", overflow="fold")
    for objective in plan.objectives:
        table.add_column(f"{objective}{', mean ± sd' if seeded else ''}", justify="right")
    if seeded:
        table.add_column("n", justify="right")
    table.add_column("state")
    for group in groups.values():
        table.add_row(*map(Text, _cells(group, len(plan.objectives), seeded=seeded)))
    console.print(table)
    for row in rows:
        if row.state == "failed":
            seed = "" if row.seed is None else f" seed={row.seed}"
            text = f"failed: {row.label}{seed}: {row.cause}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)


def _cells(group: Sequence[ResultRow], objectives: int, *, seeded: bool) -> list[str]:
    done = [row.values for row in group if row.values]
    values = [_mean(column) for column in zip(*done, strict=True)] or ["-"] * objectives
    states: dict[str, int] = {}
    for row in group:
        states[row.state] = states.get(row.state, 0) + 1
    told = [state if len(group) == 1 else f"{count} {state}" for state, count in states.items()]
    count = [str(len(done))] if seeded else []
    return [shorten_numbers(group[0].label), *values, *count, ", ".join(told)]


def shorten_numbers(assignments: str) -> str:
    """Words `key=value`, each long number with four digits: nobody reads more in a table."""
    words = []
    for word in assignments.split(" "):
        key, is_assigned, value = word.partition("=")
        with suppress(ValueError):
            value = value if len(value) <= 6 else f"{float(value):.4g}"
        words.append(f"{key}{is_assigned}{value}")
    return " ".join(words)


def _mean(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds; of one, the value."""
    mean = f"{statistics.fmean(values):.6g}"
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return mean
    return f"{mean} ± {statistics.stdev(values):.3g}"
