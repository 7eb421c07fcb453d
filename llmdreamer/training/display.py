"""Progress of a run: one live line on a terminal, a plain line now and then in other outputs."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

from llmdreamer.utils.output import discard_output
from llmdreamer.utils.printable import printable

PLAIN_LINE_SECONDS = 20.0  # between two lines without a terminal
MAX_LEFT_SECONDS = 1e10  # longer estimates are shown as unknown
FIELDS = "updates {updates} | return {episode_return} | loss {loss} | {speed} updates/s"


class QuietConsole(Console):
    """A console that discards its output once the reader has closed the pipe; rich would exit."""

    def on_broken_pipe(self) -> None:
        discard_output()


class Display:
    """The progress of one run, in environment steps. Use as a context manager."""

    def __init__(self, total: int, done: int, updates: int, *, quiet: bool = False) -> None:
        self._console = QuietConsole(quiet=quiet)
        self._live = self._console.is_terminal and not quiet
        self._fields: dict[str, Any] = {
            "updates": str(updates),
            "episode_return": "-",
            "loss": "-",
            "speed": "-",
            "left": "-",
        }
        self._total = total
        self._last_line = 0.0
        self._progress = Progress(
            TextColumn("env steps"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn(FIELDS.replace("{", "{task.fields[").replace("}", "]}")),
            TimeElapsedColumn(),
            TextColumn("left {task.fields[left]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task("", total=total, completed=done, **self._fields)

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def update(self, env_step: int, **fields: str) -> None:
        """Show `env_step`; `fields` are among updates, episode_return, loss, speed and left."""
        self._fields |= fields
        self._progress.update(self._task, completed=env_step, **self._fields)
        if not self._live and time.monotonic() - self._last_line > PLAIN_LINE_SECONDS:
            self._last_line = time.monotonic()
            line = f"env steps {env_step}/{self._total} | " + FIELDS.format(**self._fields)
            self.say(f"{line} | left {self._fields['left']}")

    def say(self, line: str) -> None:
        """Print a separate line above the live one."""
        try:
            self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
        except OSError:  # a full disk behind standard output
            discard_output()


def duration(seconds: float | None) -> str:
    """Format seconds as `0:09:24`, or `-` if they are unknown."""
    if seconds is None or not seconds <= MAX_LEFT_SECONDS:
        return "-"
    return str(timedelta(seconds=int(seconds)))
