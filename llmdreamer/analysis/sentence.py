"""The sentence that a number supports, and no more than that."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmdreamer.analysis.aggregate import LEVEL, Estimate

ALPHA = 1 - LEVEL
FEW = 10
"""Below this many runs a percentile interval is too narrow; docs/log.md, "Intervals of few runs"."""


def count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def estimate(found: Estimate, digits: int = 1) -> str:
    """`212.0 [150.3, 290.1]`; without an interval where one run gives none."""
    value = f"{float(found.value):.{digits}f}"
    if math.isnan(float(found.low)):
        return value
    return f"{value} [{float(found.low):.{digits}f}, {float(found.high):.{digits}f}]"


def of_arm(label: str, found: Estimate, seeds: int, environments: int, unit: str) -> str:
    """What the runs of one arm support."""
    where = "" if environments == 1 else f" in {count(environments, 'environment')}"
    if found.n == 1:
        return f"{label}: {estimate(found)} {unit} in a single run: no interval, no comparison."
    return (
        f"{label}: IQM {estimate(found)} {unit} (95% interval, n = {found.n} runs, "
        f"{count(seeds, 'seed')}{where})."
    )


def is_detected(found: Estimate, p: float | None) -> bool:
    """A difference counts when its interval leaves out zero *and* shuffled arms seldom match it.

    The interval alone is too eager with few runs (docs/log.md).
    """
    apart = float(found.low) > 0 or float(found.high) < 0
    return bool(apart and p is not None and p < ALPHA)


def of_difference(
    label: str, other: str, found: Estimate, p: float | None, also: Sequence[str] = ()
) -> str:
    """What a comparison of two arms supports; `p` as adjusted for the comparisons beside it."""
    if found.n < 2:
        return f"{label} against {other}: {count(found.n, 'seed')} in common: no comparison."
    if p is None:
        raise ValueError("a comparison of more than one pair has a p")
    facts = f"{estimate(found)}, p = {p:.2g}"
    if is_detected(found, p):
        side = "higher" if float(found.value) > 0 else "lower"
        text = f"{label} is {side} than {other} by {facts}, n = {found.n}."
    else:
        text = f"{label} against {other}: no difference detectable at n = {found.n} ({facts})."
    if also:
        text += f" They also differ in {'; '.join(also)}."
    return text


def of_few(counts: Sequence[int]) -> str:
    """The warning that belongs under intervals of few runs; empty if all have enough."""
    few = [n for n in counts if 1 < n < FEW]
    if not few:
        return ""
    return (
        f"With n = {min(few)} a percentile-bootstrap interval is narrower than its 95% says: it "
        "is the least there is to doubt."
    )
