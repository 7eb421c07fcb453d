"""The interface between a pool and what it runs: the next run, when to stop it, and how it ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from llmdreamer.sweep.results_table import ResultRow
from llmdreamer.sweep.run_folder import Curves


@dataclass(frozen=True)
class RunTask:
    """A run to start or to resume."""

    folder: Path
    overrides: list[str]
    tags: dict[str, str]  # of the run's MLflow run
    label: str
    key: Any  # identifies the run to its source


OutcomeKind = Literal["finished", "failed", "stopped"]


@dataclass(frozen=True)
class RunOutcome:
    """The end of a run. `stopped` means that its source stopped it; `failed` has a one-line cause."""

    kind: OutcomeKind
    curves: Curves
    env_step: int
    cause: str = ""
    exit_code: int = 0


class RunSource(Protocol):
    """A grid or a study, as a pool sees it."""

    @property
    def rows(self) -> list[ResultRow]:
        """The results so far."""

    @property
    def total(self) -> int:
        """Number of rows when the sweep is done."""

    def next_task(self) -> RunTask | None:
        """Claim the next run for this driver; None if there is none at the moment."""

    def is_done(self) -> bool:
        """Return True if no further run will come. Runs that this driver has started do not count."""

    def should_stop(self, task: RunTask, curves: Curves) -> bool:
        """Return True if a running run is to be stopped, judging by its curves."""

    def record_outcome(self, task: RunTask, outcome: RunOutcome) -> None:
        """Record the end of a run."""

    def interrupt(self) -> None:
        """Note that the driver is being stopped. Called by a signal handler."""

    def close(self) -> None:
        """Release the claims on runs that have not ended. The next driver resumes them."""


class ChainedSources:
    """Several sources in order. A slot that the first cannot fill takes a run of the next."""

    def __init__(self, sources: Sequence[RunSource]) -> None:
        self._sources = sources

    @property
    def rows(self) -> list[ResultRow]:
        return [row for source in self._sources for row in source.rows]

    @property
    def total(self) -> int:
        return sum(source.total for source in self._sources)

    def next_task(self) -> RunTask | None:
        for index, source in enumerate(self._sources):
            task = source.next_task()
            if task is not None:
                return replace(task, key=(index, task))
        return None

    def is_done(self) -> bool:
        return all(source.is_done() for source in self._sources)

    def should_stop(self, task: RunTask, curves: Curves) -> bool:
        index, inner_task = task.key
        return self._sources[index].should_stop(inner_task, curves)

    def record_outcome(self, task: RunTask, outcome: RunOutcome) -> None:
        index, inner_task = task.key
        self._sources[index].record_outcome(inner_task, outcome)

    def interrupt(self) -> None:
        for source in self._sources:
            source.interrupt()

    def close(self) -> None:
        for source in self._sources:
            source.close()
