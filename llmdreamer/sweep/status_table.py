"""A sweep's lines as a table: for a terminal of any width, for a pipe, and live."""

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
from llmdreamer.sweep.results_table import shorten_numbers
from llmdreamer.sweep.status import ENDED, RunStatus, SweepStatus

REFRESH_EVERY = 1.0  # seconds
_ORDER = ("running", "starting", "failed", "stopped", "waiting", "pruned", "finished")
_STYLES = {"running": "green", "starting": "green", "failed": "red", "stopped": "yellow"}
FEWEST = 3  # runs that are drawn on a terminal however low
_WIDE = 100  # columns of a terminal that has room for everything


def head(sweep: SweepStatus) -> str:
    """How many runs are in which state, and who drives them."""
    counts = Counter(line.state for line in sweep.lines)
    counts["waiting"] += max(0, sweep.header.total - len(sweep.lines))
    told = ", ".join(f"{counts[state]} {state}" for state in _ORDER if counts[state])
    ended = sum(counts[state] for state in ENDED)
    if sweep.drivers:
        who = f"driven by {'; '.join(sweep.drivers)}"
    elif ended < sweep.header.total:
        who = f"no driver: goes on with {sweep.header.command}"
    else:
        who = "done"
    return f"{sweep.name}: {told or 'nothing'}, of {sweep.header.total}; {who}"


def cells(sweep: SweepStatus, *, wide: bool = True) -> tuple[list[str], list[list[str]]]:
    """The columns that say something, and a row of texts for each run."""
    names = [str(one) for one in parse_objectives(sweep.header.objective)]
    short = _shortener(sweep.lines)
    columns: list[tuple[str, list[str]]] = [("#", [str(line.number) for line in sweep.lines])]
    arms = [line.arm or "-" for line in sweep.lines]
    if len({*arms}) > 1 or (wide and {*arms} - {"-"}):
        columns.append(("arm", arms))
    params = [short(line.params) or "-" for line in sweep.lines]
    if {*params} - {"-"}:
        columns.append(("parameters", params))
    seeds = [line.seed for line in sweep.lines]
    if len({*seeds}) > 1 or wide:
        columns.append(("seed", seeds))
    columns.append(("env step", [_step(line) for line in sweep.lines]))
    for place, name in enumerate(names):
        columns.append((name, [_value(line, place) for line in sweep.lines]))
    columns.append(("state", [line.state for line in sweep.lines]))
    columns.append(("time", [_duration(line.seconds) for line in sweep.lines]))
    left = [_duration(line.left) for line in sweep.lines]
    if {*left} - {"-"}:
        columns.append(("ETA", left))
    rows = [[*row] for row in zip(*(texts for _, texts in columns), strict=True)]
    return [name for name, _ in columns], rows


def render_text(sweep: SweepStatus) -> str:
    """For a pipe: no line is cut or folded, and columns are set apart by two spaces or more."""
    names, rows = cells(sweep)
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in [names, *rows]
    ]
    return "\n".join([head(sweep), *lines, *_causes(sweep.lines)])


def render_table(sweep: SweepStatus, width: int, height: int | None = None) -> RenderableType:
    """For a terminal. Of more runs than `height` has lines for, those that matter now."""
    if height is None:
        return _drawn(sweep, width, sweep.lines)
    # Of equal state, the newest.
    ranked = sorted(sweep.lines, key=lambda line: (_ORDER.index(line.state), -line.number))
    room = min(len(ranked), max(FEWEST, height - 6))
    while True:
        kept = {id(line) for line in ranked[:room]}
        table = _drawn(sweep, width, [line for line in sweep.lines if id(line) in kept])
        # A narrow terminal folds rows: how many lines they take is known when they are drawn.
        over = _height(table, width) - (height - 1)
        if over <= 0 or room <= FEWEST:
            return table
        room = max(FEWEST, room - max(1, over // 4))


def _height(drawn: RenderableType, width: int) -> int:
    console = Console(width=width, file=io.StringIO())
    return len(console.render_lines(drawn, pad=False))


def _drawn(sweep: SweepStatus, width: int, shown: list[RunStatus]) -> RenderableType:
    names, rows = cells(
        SweepStatus(sweep.name, sweep.header, sweep.drivers, shown), wide=width >= _WIDE
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    numbers = {"#", "seed", "env step", "time", "ETA"}
    for name in names:
        is_number = name in numbers or "/" in name
        narrow = name in ("parameters", "arm")
        table.add_column(
            name, justify="right" if is_number else "left", overflow="fold", no_wrap=not narrow
        )
    for line, row in zip(shown, rows, strict=True):
        table.add_row(*map(Text, row), style=_STYLES.get(line.state))
    parts: list[RenderableType] = [Text(head(sweep)), table]
    if len(shown) < len(sweep.lines):
        parts.append(Text(f"and {len(sweep.lines) - len(shown)} more"))
    return Group(*parts, *map(Text, _causes(shown)))


def _causes(lines: Sequence[RunStatus]) -> list[str]:
    return [f"failed: {line.number}: {line.cause}" for line in lines if line.state == "failed"]


def _step(line: RunStatus) -> str:
    return str(line.env_step) if line.total is None else f"{line.env_step}/{line.total}"


def _value(line: RunStatus, place: int) -> str:
    value = line.values[place] if place < len(line.values) else None
    return "-" if value is None else f"{value:.5g}"


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=int(seconds)))


def _shortener(lines: Sequence[RunStatus]) -> Callable[[str], str]:
    """Leave of a key what tells it from the others, and of a number four digits."""
    keys = {word.partition("=")[0] for line in lines for word in line.params.split()}
    last = Counter(key.rpartition(".")[2] for key in keys)

    def short(params: str) -> str:
        told = []
        for word in params.split():
            key, is_assigned, value = word.partition("=")
            name = key.rpartition(".")[2]
            told.append(f"{name if last[name] == 1 else key}{is_assigned}{value}")
        return shorten_numbers(" ".join(told))

    return short


class LiveTable:
    """Redraws a table at the bottom of the terminal; what is logged meanwhile goes above it.

    Where there is no terminal, it does nothing.
    """

    def __init__(self, look: Callable[[], SweepStatus], console: Console | None = None) -> None:
        self._look = look
        self._console = console or Console()
        self._live: Live | None = None
        self._drawn_at = 0.0
        self._handlers: list[logging.StreamHandler] = []  # type: ignore[type-arg]

    def __enter__(self) -> LiveTable:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
            # Loggers know the stream from before; only rich's stand-in keeps lines off the table.
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
        """Draw what there is now, if the last drawing is a second old."""
        if self._live is None or time.monotonic() - self._drawn_at < REFRESH_EVERY:
            return
        self._drawn_at = time.monotonic()
        size = self._console.size
        self._live.update(render_table(self._look(), size.width, size.height), refresh=True)
