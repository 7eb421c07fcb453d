"""The budget of a study beside its number of trials: hours that a driver runs, and FLOPs of training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from llmdreamer.sweep.run_folder import Curves
from llmdreamer.sweep.settings import SweeperSettings

FLOPS_METRIC = "compute/flops"
FLOPS_ATTRIBUTE = "flops"  # the trial's user attribute with the FLOPs of its runs
_TIME_ATTRIBUTE = "time"  # the study's user attribute with the time that drivers have run
WRITE_SECONDS = 10.0  # a killed driver loses at most so much of its time
# A time of another driver that is so far ahead comes from a clock that has been set back.
_CLOCK_SKEW_SECONDS = 60.0


class Budget:
    """The hours and FLOPs of a study. Once one is spent, no further trial starts; started ones end."""

    def __init__(self, settings: SweeperSettings, study: optuna.Study) -> None:
        self._hours, self._flops = settings.max_hours, settings.max_flops
        self._time = TimeSpent(study)

    def is_due(self) -> bool:
        """Return True if it is time to call `count`."""
        return self._hours is not None and self._time.is_due()

    def count(self) -> None:
        """Add the time since the last call. Hold the study's lock."""
        if self._hours is not None:
            self._time.count()

    def spent(self, trials: Iterable[FrozenTrial], running_flops: Iterable[float]) -> str | None:
        """Return which budget is spent, or None.

        Args:
            running_flops: of the runs that this driver has not ended.
        """
        if self._hours is not None and self._time.seconds >= 3600 * self._hours:
            return f"hydra.sweeper.max_hours={self._hours:g}"
        if self._flops is not None and flops_spent(trials, running_flops) >= self._flops:
            return f"hydra.sweeper.max_flops={self._flops:g}"
        return None


class TimeSpent:
    """The time in which at least one driver of a study has run, kept in the study.

    Each driver adds the time since its last call, without what another driver has added already. Pauses
    between drivers do not count. Hold the study's lock during `count`.
    """

    def __init__(
        self,
        study: optuna.Study,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._study, self._clock, self._wall_clock = study, clock, wall_clock
        self._counted_at = clock()
        self.seconds = self._read()[0]

    def is_due(self) -> bool:
        return self._clock() - self._counted_at >= WRITE_SECONDS

    def count(self) -> float:
        """Add the time since the last call, and return the seconds of all drivers so far."""
        now, wall = self._clock(), self._wall_clock()
        elapsed, self._counted_at = now - self._counted_at, now
        seconds, until = self._read()
        if until > wall + _CLOCK_SKEW_SECONDS:
            until = 0.0
        self.seconds = seconds + max(0.0, wall - max(wall - elapsed, until))
        state = {"seconds": self.seconds, "until": max(wall, until)}
        self._study.set_user_attr(_TIME_ATTRIBUTE, state)
        return self.seconds

    def _read(self) -> tuple[float, float]:
        """Return the seconds, and the epoch time up to which they are counted."""
        stored = self._study.user_attrs.get(_TIME_ATTRIBUTE)
        stored = stored if isinstance(stored, dict) else {}
        return _number(stored.get("seconds")), _number(stored.get("until"))


def run_flops(curves: Curves) -> float:
    """Return the FLOPs that a run has spent on training so far."""
    curve = curves.get(FLOPS_METRIC)
    return curve[-1][1] if curve else 0.0


def flops_spent(trials: Iterable[FrozenTrial], running: Iterable[float]) -> float:
    """Return the FLOPs of trials that have ended, and of the runs of this driver."""
    ended = (_number(trial.user_attrs.get(FLOPS_ATTRIBUTE)) for trial in trials)
    return sum(ended) + sum(running)


def _number(value: Any) -> float:
    """Return a stored number. A database is data that others may write: anything else counts as 0."""
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return max(0.0, float(value)) if is_number else 0.0
