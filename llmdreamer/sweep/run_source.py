"""What a pool asks of a grid or a study: the next run, whether to stop one, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from llmdreamer.sweep.results_table import ResultRow
from llmdreamer.sweep.run_folder import Curves


@dataclass(frozen=True)
class RunTask:
    """One run that is due."""

    folder: Path
    overrides: list[str]
    tags: dict[str, str]  # of its MLflow run
    label: str
    key: Any  # the source's own


@dataclass(frozen=True)
class RunOutcome:
    """How a run ended. `stopped`: as its source wished; `failed` gives the cause in one line."""

    kind: Literal["finished", "failed", "stopped"]
    curves: Curves
    env_step: int
    cause: str = ""
    exit_code: int = 0


class RunSource(Protocol):
    @property
    def rows(self) -> list[ResultRow]:
        """The results so far."""

    @property
    def total(self) -> int:
        """How many rows there will be."""

    def next_task(self) -> RunTask | None:
        """The next run, claimed by this driver; None if there is none just now."""

    def is_done(self) -> bool:
        """Whether nothing is to come any more. Runs that this driver has begun are not asked for."""

    def should_stop(self, task: RunTask, curves: Curves) -> bool:
        """Look at a run on its way; True has it stopped."""

    def record_outcome(self, task: RunTask, outcome: RunOutcome) -> None:
        """Take note of a run's end."""

    def close(self) -> None:
        """Let go of what was claimed and not ended: the next driver goes on with it."""


class ChainedSources:
    """Sources one after another; slots of the first that fall free go to the second."""

    def __init__(self, sources: Sequence[RunSource]) -> None:
        self._sources = sources

    @property
    def rows(self) -> list[ResultRow]:
        return [row for source in self._sources for row in source.rows]

    @property
    def total(self) -> int:
        return sum(source.total for source in self._sources)

    def next_task(self) -> RunTask | None:
        for place, source in enumerate(self._sources):
            task = source.next_task()
            if task is not None:
                return replace(task, key=(place, task))
        return None

    def is_done(self) -> bool:
        return all(source.is_done() for source in self._sources)

    def should_stop(self, task: RunTask, curves: Curves) -> bool:
        place, own = task.key
        return self._sources[place].should_stop(own, curves)

    def record_outcome(self, task: RunTask, outcome: RunOutcome) -> None:
        place, own = task.key
        self._sources[place].record_outcome(own, outcome)

    def close(self) -> None:
        for source in self._sources:
            source.close()
