"""A trial of a study that this driver runs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import Trial

from llmdreamer.sweep.run_source import RunOutcome, RunTask

log = logging.getLogger(__name__)


@dataclass
class RunningTrial:
    """A trial that this driver runs: one run for each seed."""

    trial: Trial
    tasks: list[RunTask]  # runs that are not started yet
    running: int = 0
    values: dict[int, list[float]] = field(default_factory=dict)  # of finished runs, by seed index
    reported: set[int] = field(default_factory=set)  # steps whose value Optuna has
    env_step: int = 0
    flops: dict[int, float] = field(default_factory=dict)  # so far, by seed index
    is_pruned: bool = False
    has_ended: bool = False  # another driver took the trial over and has ended it
    failure: RunOutcome | None = None

    @property
    def is_stopped(self) -> bool:
        """True if its runs are stopped, and no other run is started."""
        return self.is_pruned or self.has_ended or self.failure is not None

    def write(self, function: Callable[[], object]) -> None:
        """Call a function that writes to the trial, unless the trial has ended.

        A driver that is stopped for a while seems dead: another one may have taken its trials over.
        """
        if self.has_ended:
            return
        try:
            function()
        except UpdateFinishedTrialError:
            self.has_ended = True
            log.info("trial %d was ended by another driver", self.trial.number)
