"""Sentences about estimates, which claim no more than the numbers support."""

from __future__ import annotations

import math
from collections.abc import Sequence

from llmdreamer.analysis.aggregate import LEVEL, Estimate

ALPHA = 1 - LEVEL
FEW_RUNS = 10
"""With fewer runs, a percentile interval is too narrow; see docs/log.md, "Intervals of few runs"."""


def count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def format_estimate(estimate: Estimate, digits: int = 1) -> str:
    """Return text such as `212.0 [150.3, 290.1]`; without the interval if there is none."""
    value = f"{float(estimate.value):.{digits}f}"
    if math.isnan(float(estimate.low)):
        return value
    return f"{value} [{float(estimate.low):.{digits}f}, {float(estimate.high):.{digits}f}]"


def arm_statement(label: str, estimate: Estimate, seeds: int, environments: int, unit: str) -> str:
    """State the score of one arm."""
    where = "" if environments == 1 else f" in {count(environments, 'environment')}"
    if estimate.n == 1:
        value = format_estimate(estimate)
        return f"{label}: {value} {unit} in a single run: no interval, no comparison."
    return (
        f"{label}: IQM {format_estimate(estimate)} {unit} (95% interval, n = {estimate.n} runs, "
        f"{count(seeds, 'seed')}{where})."
    )


def is_detected(difference: Estimate, p: float | None) -> bool:
    """Return True if the interval excludes zero *and* permuted arms rarely differ as much.

    The interval alone claims too many differences with few runs (docs/log.md).
    """
    excludes_zero = float(difference.low) > 0 or float(difference.high) < 0
    return bool(excludes_zero and p is not None and p < ALPHA)


def difference_statement(
    label: str,
    other: str,
    difference: Estimate,
    p: float | None,
    other_differences: Sequence[str] = (),
) -> str:
    """State the difference of two arms.

    Args:
        p: adjusted for the comparisons that are made together.
        other_differences: what the arms differ in beside the compared option.

    Raises:
        ValueError: if `p` is None with more than one pair.
    """
    if difference.n < 2:
        return f"{label} against {other}: {count(difference.n, 'seed')} in common: no comparison."
    if p is None:
        raise ValueError("a comparison of more than one pair needs p")
    numbers = f"{format_estimate(difference)}, p = {p:.2g}"
    if is_detected(difference, p):
        side = "higher" if float(difference.value) > 0 else "lower"
        text = f"{label} is {side} than {other} by {numbers}, n = {difference.n}."
    else:
        text = (
            f"{label} against {other}: no difference detectable at n = {difference.n} ({numbers})."
        )
    if other_differences:
        text += f" They also differ in {'; '.join(other_differences)}."
    return text


def few_runs_warning(counts: Sequence[int]) -> str:
    """Return the warning for intervals of few runs; empty if every arm has enough runs."""
    few = [n for n in counts if 1 < n < FEW_RUNS]
    if not few:
        return ""
    return (
        f"With n = {min(few)}, a percentile-bootstrap interval covers less than 95%: "
        "the true uncertainty is larger."
    )
