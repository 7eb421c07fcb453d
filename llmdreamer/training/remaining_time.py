"""Estimates the time that a run will still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

NEWEST_WEIGHT = 0.3  # weight of the newest measurement in the moving average of an update's time


class RemainingTime:
    """Estimates the rest of a run from the time of its updates and evaluations so far.

    The two are measured separately. Random steps at the start take next to no time, and an evaluation takes
    as long as many updates, so the rate of environment steps alone would predict neither. The last
    evaluations have more episodes than the measured ones, so near the end the estimate is too low.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._update: float | None = None  # seconds of an update and the steps that go with it
        self._evaluation = 0.0  # seconds of the newest evaluation
        self._since = clock()

    def restart(self) -> None:
        """Leave out the time since the last measurement, in which no update was due."""
        self._since = self._clock()

    def count_updates(self, updates: int) -> None:
        """Count the updates since the last measurement.

        Args:
            updates: at least 1.
        """
        seconds = (self._clock() - self._since) / updates
        if self._update is None:
            self._update = seconds
        else:
            self._update += NEWEST_WEIGHT * (seconds - self._update)
        self.restart()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Measure an evaluation; its time does not count for the updates around it."""
        begin = self._clock()
        yield
        self._evaluation = self._clock() - begin
        self._since += self._evaluation

    def seconds(self, updates: int, evaluations: int) -> float | None:
        """Return the seconds that so many updates and evaluations will take; None before any update."""
        if self._update is None:
            return None
        return updates * self._update + evaluations * self._evaluation
