"""Formats the status of a sweep as a table: for a terminal of any width, for a pipe, and live."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llmdreamer.config import parse_objectives
from llmdreamer.sweep.results_table import make_shortener
from llmdreamer.sweep.status import END_STATES, RunStatus, SweepStatus
from llmdreamer.utils.printable import printable

REFRESH_SECONDS = 1.0
MIN_RUNS = 3  # runs that are shown on a terminal however low it is
MAX_SECONDS = 1e9  # a longer time is not shown: its record is damaged
_WIDE_COLUMNS = 100  # characters of a terminal line that has room for all columns
_STATE_ORDER = ("running", "starting", "failed", "stopped", "waiting", "pruned", "finished")
_STYLES = {"running": "green", "starting": "green", "failed": "red", "stopped": "yellow"}


def summary_line(sweep: SweepStatus) -> str:
    """Return one line: the number of runs in each state, and the live drivers."""
    counts = Counter(run.state for run in sweep.runs)
    counts["waiting"] += max(0, sweep.header.total - len(sweep.runs))
    states = ", ".join(f"{counts[state]} {state}" for state in _STATE_ORDER if counts[state])
    ended = sum(counts[state] for state in END_STATES)
    if sweep.drivers:
        driver = f"driven by {'; '.join(sweep.drivers)}"
    elif ended < sweep.header.total:
        driver = f"no driver: continue with {sweep.header.command}"
    else:
        driver = "done"
    return printable(f"{sweep.name}: {states or 'nothing'}, of {sweep.header.total}; {driver}")


def table_cells(sweep: SweepStatus, *, wide: bool = True) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns that hold information, and a row of texts for each run."""
    runs = sweep.runs
    objectives = [str(objective) for objective in parse_objectives(sweep.header.objective)]
    shorten = make_shortener(word.partition("=")[0] for run in runs for word in run.params.split())
    columns: list[tuple[str, list[str]]] = [("#", [str(run.number) for run in runs])]
    arms = [run.arm or "-" for run in runs]
    if len({*arms}) > 1 or (wide and {*arms} - {"-"}):
        columns.append(("arm", arms))
    params = [shorten(run.params) or "-" for run in runs]
    if {*params} - {"-"}:
        columns.append(("parameters", params))
    seeds = [run.seed for run in runs]
    if len({*seeds}) > 1 or wide:
        columns.append(("seed", seeds))
    columns.append(("env step", [_format_step(run) for run in runs]))
    for index, name in enumerate(objectives):
        columns.append((name, [_format_value(run, index) for run in runs]))
    columns.append(("state", [run.state for run in runs]))
    columns.append(("time", [_format_seconds(run.seconds) for run in runs]))
    seconds_left = [_format_seconds(run.seconds_left) for run in runs]
    if {*seconds_left} - {"-"}:
        columns.append(("ETA", seconds_left))
    rows = [[*map(printable, row)] for row in zip(*(texts for _, texts in columns), strict=True)]
    return [name for name, _ in columns], rows


def render_text(sweep: SweepStatus) -> str:
    """Format the table for a pipe: lines are never cut or wrapped, columns are two spaces apart."""
    names, rows = table_cells(sweep)
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [names, *rows]
    ]
    return "\n".join([summary_line(sweep), *lines, *_failure_lines(sweep.runs)])


def render_table(sweep: SweepStatus, width: int, height: int | None = None) -> RenderableType:
    """Format the table for a terminal. If `height` lines are too few, drop the runs that matter least."""
    if height is None:
        return _render_runs(sweep, width, sweep.runs)
    # By state; within a state, the newest first.
    ranked = sorted(sweep.runs, key=lambda run: (_STATE_ORDER.index(run.state), -run.number))
    room = min(len(ranked), max(MIN_RUNS, height - 6))
    while True:
        kept = {id(run) for run in ranked[:room]}
        table = _render_runs(sweep, width, [run for run in sweep.runs if id(run) in kept])
        # A narrow terminal wraps rows, so the number of lines is known only after rendering.
        excess = _line_count(table, width) - (height - 1)
        if excess <= 0 or room <= MIN_RUNS:
            return table
        room = max(MIN_RUNS, room - max(1, excess // 4))


def _line_count(renderable: RenderableType, width: int) -> int:
    console = Console(width=width, file=io.StringIO())
    return len(console.render_lines(renderable, pad=False))


def _render_runs(sweep: SweepStatus, width: int, runs: list[RunStatus]) -> RenderableType:
    shown = SweepStatus(sweep.name, sweep.header, sweep.drivers, runs)
    names, rows = table_cells(shown, wide=width >= _WIDE_COLUMNS)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    numeric = {"#", "seed", "env step", "time", "ETA"}
    for name in names:
        is_numeric = name in numeric or "/" in name
        may_wrap = name in ("parameters", "arm")
        table.add_column(
            name,
            justify="right" if is_numeric else "left",
            overflow="fold",
            no_wrap=not may_wrap,
        )
    for run, row in zip(runs, rows, strict=True):
        table.add_row(*map(Text, row), style=_STYLES.get(run.state))
    blocks: list[RenderableType] = [Text(summary_line(sweep)), table]
    if len(runs) < len(sweep.runs):
        blocks.append(Text(f"and {len(sweep.runs) - len(runs)} more"))
    return Group(*blocks, *map(Text, _failure_lines(runs)))


def _failure_lines(runs: Sequence[RunStatus]) -> list[str]:
    return [printable(f"{run.state}: {run.number}: {run.cause}") for run in runs if run.cause]


def _format_step(run: RunStatus) -> str:
    total = run.total_env_steps
    return str(run.env_step) if total is None else f"{run.env_step}/{total}"


def _format_value(run: RunStatus, index: int) -> str:
    value = run.values[index] if index < len(run.values) else None
    return "-" if value is None else f"{value:.5g}"


def _format_seconds(seconds: float | None) -> str:
    if seconds is None or not 0 <= seconds < MAX_SECONDS:
        return "-"
    return str(timedelta(seconds=int(seconds)))


class LiveTable:
    """A table at the bottom of the terminal that redraws itself. Log lines appear above it.

    Without a terminal it does nothing.
    """

    def __init__(
        self, read_status: Callable[[], SweepStatus], console: Console | None = None
    ) -> None:
        self._read_status = read_status
        self._console = console or Console()
        self._live: Live | None = None
        self._drawn_at = 0.0
        self._handlers: list[logging.StreamHandler] = []  # type: ignore[type-arg]

    def __enter__(self) -> LiveTable:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            # Handlers hold the original stream. Only rich's replacement prints above the table.
            for handler in logging.getLogger().handlers:
                if getattr(handler, "stream", None) is sys.__stdout__:
                    assert isinstance(handler, logging.StreamHandler)
                    handler.setStream(sys.stdout)
                    self._handlers.append(handler)
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        if self._live is None:
            return
        self._live.stop()
        for handler in self._handlers:
            handler.setStream(sys.__stdout__)

    def refresh(self) -> None:
        """Redraw the table if the last drawing is more than a second old."""
        if self._live is None or time.monotonic() - self._drawn_at < REFRESH_SECONDS:
            return
        self._drawn_at = time.monotonic()
        size = self._console.size
        table = render_table(self._read_status(), size.width, size.height)
        self._live.update(table, refresh=True)
