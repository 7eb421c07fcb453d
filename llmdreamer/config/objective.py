"""What a sweep optimises: logged metrics, each with the way from its curve to one number."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llmdreamer.utils.errors import ConfigError, did_you_mean

REDUCTIONS = ("last", "best", "auc")
NEVER_LOGGED = "was never logged; choose from"
"""By these words a study knows that a trial failed for what was asked of all of them."""

Curve = Sequence[tuple[int, float]]
"""(env_step, value), in the order of the steps."""


@dataclass(frozen=True)
class Objective:
    """A metric and its reduction: the last value, the best one, or the mean height of the curve."""

    metric: str
    reduction: str = "last"

    def __str__(self) -> str:
        return self.metric if self.reduction == "last" else f"{self.metric}:{self.reduction}"

    def value(self, curve: Curve, *, maximize: bool) -> float:
        """Reduce a curve of at least one point.

        `auc` is the area under the straight lines between the points, divided by the steps they
        span; of points at a single step, the last value.
        """
        values = [value for _, value in curve]
        if self.reduction == "best":
            return max(values) if maximize else min(values)
        span = curve[-1][0] - curve[0][0]
        if self.reduction == "last" or span == 0:
            return values[-1]
        pairs = itertools.pairwise(curve)
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs) / span


def never_logged(lost: Iterable[str], logged: Iterable[str]) -> str:
    """Say that metrics are not there, and which are."""
    there = ", ".join(sorted(logged)) or "nothing"
    return f"objective={', '.join(lost)} {NEVER_LOGGED} {there}"


def parse_objectives(text: str) -> list[Objective]:
    """Read `eval/return`, `eval/return:best` or, for a Pareto study, several with commas between.

    Raises:
        ConfigError: if a reduction is none of `REDUCTIONS`, or a metric is empty or named twice.
    """
    found = []
    for part in text.split(","):
        metric, _, reduction = part.strip().partition(":")
        reduction = reduction or "last"
        if not metric:
            raise ConfigError(f"objective='{text}': names no metric")
        if reduction not in REDUCTIONS:
            near = did_you_mean(reduction, REDUCTIONS)
            raise ConfigError(
                f"objective={text}: no reduction '{reduction}'; choose from {', '.join(REDUCTIONS)}{near}"
            )
        found.append(Objective(metric, reduction))
    if len({str(one) for one in found}) < len(found):
        raise ConfigError(f"objective={text}: names a metric twice")
    return found
