"""The results of a sweep: a row for each run as CSV, and a printed table aggregated over seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llmdreamer.config.objective import never_logged_message
from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.run_folder import Curves
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.redact import redact_message

RESULTS_FILE = "results.csv"
# The columns of the objectives stand between these two groups.
_COLUMNS_BEFORE = ("label", "seed", "state", "env_step")
_COLUMNS_AFTER = ("folder", "overrides", "cause", "number", "arm", "params")


@dataclass
class ResultRow:
    """A run, or a trial of a study over several seeds; `seed` is then None."""

    label: str
    group: str  # equal for runs that differ only in the seed
    seed: int | None
    overrides: str
    number: int = 0  # of the trial, or of the run in the grid's order
    arm: str = ""
    params: str = ""  # overrides that differ between the runs of an arm
    folder: str = ""
    state: str = "waiting"
    env_step: int = 0
    values: list[float] = field(default_factory=list)  # of the objectives; empty until finished
    cause: str = ""
    exit_code: int = 0


def objective_values(plan: Plan, curves: Curves) -> list[float] | None:
    """Reduce the curves to the values of the objectives; None if one was never logged."""
    values = []
    for objective, maximize in zip(plan.objectives, plan.maximize, strict=True):
        if not curves.get(objective.metric):
            return None
        values.append(objective.value(curves[objective.metric], maximize=maximize))
    return values


def missing_objective(plan: Plan, curves: Curves) -> str:
    """Return an error line that names the objectives without a curve and the metrics that have one."""
    metrics = [objective.metric for objective in plan.objectives]
    return never_logged_message([metric for metric in metrics if metric not in curves], curves)


def write_results(plan: Plan, rows: Sequence[ResultRow]) -> Path:
    """Write results.csv into the sweep's folder and return its path."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [str(objective) for objective in plan.objectives]
    writer.writerow([*_COLUMNS_BEFORE, *names, *_COLUMNS_AFTER])
    for row in rows:
        values = [repr(value) for value in row.values] or [""] * len(names)
        before, after = (
            [_csv_value(row, name) for name in group] for group in (_COLUMNS_BEFORE, _COLUMNS_AFTER)
        )
        writer.writerow([*before, *values, *after])
    path = plan.folder / RESULTS_FILE
    write_atomically(path, text.getvalue())
    return path


def _csv_value(row: ResultRow, name: str) -> object:
    value = getattr(row, name)
    if isinstance(value, str) and name != "folder":
        return redact_message(value)
    return "" if value is None else value


def read_results(path: Path) -> list[ResultRow]:
    """Read what `write_results` wrote. `group` and `exit_code` are not in the file.

    Raises:
        ValueError: if the file is not the table of a sweep.
    """
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        columns = list(reader.fieldnames or [])
        if columns[:4] != list(_COLUMNS_BEFORE) or "folder" not in columns:
            raise ValueError(f"{path} is not the table of a sweep")
        objectives = columns[len(_COLUMNS_BEFORE) : columns.index("folder")]
        return [_parse_row(cells, objectives) for cells in reader]


def _parse_row(cells: dict[str, str], objectives: Sequence[str]) -> ResultRow:
    return ResultRow(
        label=cells["label"],
        group="",
        seed=int(cells["seed"]) if cells["seed"] else None,
        overrides=cells["overrides"],
        number=int(cells["number"]),
        arm=cells["arm"],
        params=cells["params"],
        folder=cells["folder"],
        state=cells["state"],
        env_step=int(cells["env_step"]),
        values=[float(cells[name]) for name in objectives if cells[name]],
        cause=cells["cause"],
    )


def print_results(plan: Plan, rows: Sequence[ResultRow], console: Console | None = None) -> None:
    """Print the table, aggregated over seeds, and below it the cause of each failure and refusal."""
    console = console or Console()
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    has_seeds = any(len(group) > 1 for group in groups.values())
    # Text, because in a string rich reads `[c_attn]` as a style.
    table = Table(title=Text(plan.name), title_justify="left")
    table.add_column("run" if not has_seeds else "cell", overflow="fold")
    for objective in plan.objectives:
        table.add_column(f"{objective}{', mean ± sd' if has_seeds else ''}", justify="right")
    if has_seeds:
        table.add_column("n", justify="right")
    table.add_column("state")
    for group in groups.values():
        cells = _table_row(group, len(plan.objectives), has_seeds=has_seeds)
        table.add_row(*(Text(redact_message(cell)) for cell in cells))
    console.print(table)
    for row in rows:
        if row.state == "failed" or (row.state == "pruned" and row.cause):
            _print_cause(console, row)


def _print_cause(console: Console, row: ResultRow) -> None:
    seed = "" if row.seed is None else f" seed={row.seed}"
    text = redact_message(f"{row.state}: {row.label}{seed}: {row.cause}")
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _table_row(group: Sequence[ResultRow], objectives: int, *, has_seeds: bool) -> list[str]:
    done = [row.values for row in group if row.values]
    values = [_mean_and_deviation(column) for column in zip(*done, strict=True)] or [
        "-"
    ] * objectives
    states: dict[str, int] = {}
    for row in group:
        states[row.state] = states.get(row.state, 0) + 1
    texts = [state if len(group) == 1 else f"{count} {state}" for state, count in states.items()]
    count = [str(len(done))] if has_seeds else []
    return [shorten_numbers(group[0].label), *values, *count, ", ".join(texts)]


def shorten_numbers(assignments: str) -> str:
    """Round each number of more than six characters in words `key=value` to four digits."""
    words = []
    for word in assignments.split(" "):
        key, is_assigned, value = word.partition("=")
        with suppress(ValueError):
            value = value if len(value) <= 6 else f"{float(value):.4g}"
        words.append(f"{key}{is_assigned}{value}")
    return " ".join(words)


def make_shortener(keys: Iterable[str]) -> Callable[[str], str]:
    """Return a function that shortens words `key=value`, for a sweep that varies `keys`.

    Of a dotted key only the last part is left, if no other key ends with it; numbers are rounded.
    """
    last_parts = Counter(key.rpartition(".")[2] for key in {*keys})

    def shorten(assignments: str) -> str:
        words = []
        for word in assignments.split():
            key, is_assigned, value = word.partition("=")
            name = key.rpartition(".")[2]
            words.append(f"{name if last_parts[name] == 1 else key}{is_assigned}{value}")
        return shorten_numbers(" ".join(words))

    return shorten


def _mean_and_deviation(values: Sequence[float]) -> str:
    """Return mean and standard deviation over seeds, or the value of a single seed."""
    mean = f"{statistics.fmean(values):.6g}"
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return mean
    return f"{mean} ± {statistics.stdev(values):.3g}"
