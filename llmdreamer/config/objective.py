"""Objectives of a sweep: logged metrics, each with the reduction of its curve to one number."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmdreamer.utils.errors import ConfigError, did_you_mean

REDUCTIONS = ("last", "best", "auc")
NEVER_LOGGED = "was never logged; choose from"
"""Marks the error of a metric that no trial logs. A study that finds it in a trial's error stops."""

Curve = Sequence[tuple[int, float]]
"""(env_step, value) pairs in the order of the steps."""


@dataclass(frozen=True)
class Objective:
    """A metric and its reduction: the last value, the best value, or the mean over the curve."""

    metric: str
    reduction: str = "last"

    def __str__(self) -> str:
        return self.metric if self.reduction == "last" else f"{self.metric}:{self.reduction}"

    def value(self, curve: Curve, *, maximize: bool) -> float:
        """Reduce a curve of at least one point.

        `auc` is the area under the piecewise linear curve, divided by the number of steps it spans.
        For points at a single step it is the last value.
        """
        values = [value for _, value in curve]
        if self.reduction == "best":
            return max(values) if maximize else min(values)
        span = curve[-1][0] - curve[0][0]
        if self.reduction == "last" or span == 0:
            return values[-1]
        pairs = itertools.pairwise(curve)
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs) / span


def never_logged_message(missing: Iterable[str], logged: Iterable[str]) -> str:
    """Return the error message that lists the missing metrics and the logged ones."""
    choices = ", ".join(sorted(logged)) or "nothing"
    return f"objective={', '.join(missing)} {NEVER_LOGGED} {choices}"


def parse_objectives(text: str) -> list[Objective]:
    """Parse `eval/return`, `eval/return:best` or, for a Pareto study, several separated by commas.

    Raises:
        ConfigError: if a reduction is not in `REDUCTIONS`, or a metric is empty or named twice.
    """
    objectives: list[Objective] = []
    for item in text.split(","):
        metric, _, reduction = item.strip().partition(":")
        reduction = reduction or "last"
        if not metric:
            raise ConfigError(f"objective='{text}': names no metric")
        if reduction not in REDUCTIONS:
            near = did_you_mean(reduction, REDUCTIONS)
            raise ConfigError(
                f"objective={text}: no reduction '{reduction}'; choose from {', '.join(REDUCTIONS)}{near}"
            )
        objectives.append(Objective(metric, reduction))
    if len({str(objective) for objective in objectives}) < len(objectives):
        raise ConfigError(f"objective={text}: names a metric twice")
    return objectives
