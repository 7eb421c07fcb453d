"""Summarizes a sweep for its run in MLflow: the best result, the runs by state, and a table."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.results_table import ResultRow, make_shortener
from llmdreamer.utils.redact import redact_message

MAX_TABLE_ROWS = 50  # in the description; results.csv has all

_END_STATES = ("finished", "pruned", "failed")


@dataclass(frozen=True)
class SweepSummary:
    """The results of a sweep, as metrics, tags and text of its run in MLflow."""

    metrics: dict[str, float]
    tags: dict[str, str]
    note: str  # Markdown


@dataclass(frozen=True)
class _Cell:
    """Finished runs that differ only in the seed, or one trial."""

    row: ResultRow  # the first of them
    count: int
    means: list[float]  # one for each objective


def summarize(plan: Plan, rows: Sequence[ResultRow]) -> SweepSummary:
    """Summarize the rows of a sweep.

    Only cells with most finished seeds are compared: a mean over fewer seeds is more often high by luck.
    """
    states = Counter(row.state for row in rows)
    runs = ", ".join(f"{count} {state}" for state, count in states.most_common()) or "none"
    names = [str(objective) for objective in plan.objectives]
    directions = ["maximize" if maximize else "minimize" for maximize in plan.maximize]
    # All of them each time, zeros too: the sweep may have ended before, with other numbers.
    metrics = {f"runs/{state}": float(states[state]) for state in _END_STATES}
    metrics["runs/unfinished"] = float(len(rows)) - sum(metrics.values())
    tags = {"runs": runs, "objective": ", ".join(names), "direction": ", ".join(directions)}
    lines = [f"Runs: {runs}."]
    cells = _comparable_cells(rows)
    if len(names) > 1:
        front = ", ".join(str(cell.row.number) for cell in _pareto_front(cells, plan.maximize))
        tags["pareto_front"] = front
        lines.insert(0, f"**Pareto front** of {', '.join(names)}: runs {front or '-'}.")
    elif cells:
        best = (max if plan.maximize[0] else min)(cells, key=lambda cell: cell.means[0])
        metrics["best_value"] = best.means[0]
        tags |= {"best_run": str(best.row.number), "best_params": _params(plan, best.row)}
        seeds = f" (mean of {best.count} seeds)" if best.count > 1 else ""
        value = f"**Best {names[0]}: {best.means[0]:.6g}**{seeds}"
        lines.insert(0, f"{value}, run {best.row.number}: {_short_params(plan, best.row)}")
    note = "\n\n".join([*lines, *_table(plan, rows, names)])
    tags = {key: redact_message(value) for key, value in tags.items()}
    return SweepSummary(metrics, tags, redact_message(note))


def _comparable_cells(rows: Sequence[ResultRow]) -> list[_Cell]:
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        if row.values and all(map(math.isfinite, row.values)):
            groups.setdefault(row.group, []).append(row)
    most = max(map(len, groups.values()), default=0)
    return [
        _Cell(
            group[0],
            most,
            [*map(statistics.fmean, zip(*(row.values for row in group), strict=True))],
        )
        for group in groups.values()
        if len(group) == most
    ]


def _pareto_front(cells: Sequence[_Cell], maximize: Sequence[bool]) -> list[_Cell]:
    """Return the cells that no other cell beats in one objective without losing in another."""
    signs = [1.0 if each else -1.0 for each in maximize]
    scores = [[sign * mean for sign, mean in zip(signs, cell.means, strict=True)] for cell in cells]

    def is_dominated(score: list[float]) -> bool:
        return any(
            other != score and all(a >= b for a, b in zip(other, score, strict=True))
            for other in scores
        )

    return [cell for cell, score in zip(cells, scores, strict=True) if not is_dominated(score)]


def _params(plan: Plan, row: ResultRow) -> str:
    """Return what tells the row's cell from the others: its arm, if the sweep has arms, and its values."""
    return f"{row.arm if plan.settings.arms else ''} {row.params}".strip() or "-"


def _short_params(plan: Plan, row: ResultRow) -> str:
    return make_shortener(plan.swept)(_params(plan, row))


def _table(plan: Plan, rows: Sequence[ResultRow], names: Sequence[str]) -> list[str]:
    """Return a Markdown table of the first rows, best first, and a line about those left out."""
    if not rows:
        return []
    sign = -1.0 if plan.maximize[0] else 1.0
    ordered = sorted(rows, key=lambda row: sign * row.values[0] if row.values else math.inf)
    has_cause = any(row.cause for row in rows)
    header = ["run", "values", "seed", *names, "state", "env step", *["cause"] * has_cause]
    lines = [header, ["---"] * len(header)]
    for row in ordered[:MAX_TABLE_ROWS]:
        values = [f"{value:.6g}" for value in row.values] or [""] * len(names)
        seed = "" if row.seed is None else str(row.seed)
        cells = [str(row.number), _short_params(plan, row), seed, *values, row.state]
        cells += [str(row.env_step), *[row.cause] * has_cause]
        lines.append([cell.replace("|", "\\|") for cell in cells])
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    left_out = len(rows) - MAX_TABLE_ROWS
    return [table, f"{left_out} more in results.csv."] if left_out > 0 else [table]
