"""The metrics that are read first. Without a slash in their names, MLflow groups them by themselves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from llmdreamer.config.objective import Objective
from llmdreamer.tracking.spool import read_metrics

NAMES = ("return", "return_best", "area_under_curve", "env_step", "minutes")
_RETURN, _BEST_RETURN, _MINUTES = "eval/return", "eval/best_return", "minutes"
_AREA = Objective(_RETURN, "auc")


class Headline:
    """Derives the headline metrics of a run from the metrics that it logs.

    Args:
        spool: file of the metrics of earlier processes of the run; None if there is none.
    """

    def __init__(self, spool: Path | None) -> None:
        self._evaluations: list[tuple[int, float]] = []  # (env_step, mean return)
        self._minutes_before = 0.0  # of earlier processes
        self._started = time.monotonic()
        for record in read_metrics(spool) if spool is not None and spool.exists() else ():
            self._minutes_before = record.metrics.get(_MINUTES, self._minutes_before)
            if _RETURN in record.metrics:
                self._evaluations.append((record.env_step, record.metrics[_RETURN]))

    def progress(self, env_step: int) -> dict[str, float]:
        """Return how far the run is, and how long its processes have taken together."""
        minutes = self._minutes_before + (time.monotonic() - self._started) / 60
        return {"env_step": float(env_step), _MINUTES: round(minutes, 3)}

    def results(self, metrics: Mapping[str, float], env_step: int) -> dict[str, float]:
        """Return the headline metrics of an evaluation, with the progress; nothing for other metrics."""
        results: dict[str, float] = {}
        if _RETURN in metrics:
            self._evaluations.append((env_step, metrics[_RETURN]))
            results["return"] = metrics[_RETURN]
            results["area_under_curve"] = _AREA.value(self._evaluations, maximize=True)
        if _BEST_RETURN in metrics:
            results["return_best"] = metrics[_BEST_RETURN]
        return results | self.progress(env_step) if results else {}


def headline_note(newest: Mapping[str, float]) -> str:
    """Return the headline metrics in a line of Markdown, the return first: a run's page opens with it."""
    first, *others = [f"{name} {newest[name]:.6g}" for name in NAMES if name in newest]
    return ", ".join([f"**{first}**", *others])
