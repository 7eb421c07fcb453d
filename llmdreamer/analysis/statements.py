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
    """State the score of an arm of several runs."""
    where = "" if environments == 1 else f" in {count(environments, 'environment')}"
    return (
        f"{label}: IQM {format_estimate(estimate)} {unit} (95% interval, n = {estimate.n} runs, "
        f"{count(seeds, 'seed')}{where})."
    )


def single_runs(arms: int) -> str:
    """State how many arms have a single run."""
    have = "1 arm has" if arms == 1 else f"{arms} arms have"
    return f"{have} a single run: no interval, no comparison."


def is_detected(difference: Estimate, p: float) -> bool:
    """Return True if the interval excludes zero *and* permuted arms rarely differ as much.

    The interval alone claims too many differences with few runs (docs/log.md).
    """
    excludes_zero = float(difference.low) > 0 or float(difference.high) < 0
    return bool(excludes_zero and p < ALPHA)


def difference_statement(
    label: str,
    other: str,
    difference: Estimate,
    p: float,
    other_differences: Sequence[str] = (),
) -> str:
    """State the difference of two arms with two or more seeds in common.

    Args:
        p: adjusted for the comparisons that are made together.
        other_differences: what the arms differ in beside the compared option.
    """
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


def no_comparison(pairs: int) -> str:
    """State how many pairs of arms cannot be compared."""
    have = "1 pair of arms has" if pairs == 1 else f"{pairs} pairs of arms have"
    return f"{have} fewer than two seeds in common: no comparison."


def few_runs_warning(counts: Sequence[int]) -> str:
    """Return the warning for intervals of few runs; empty if every arm has enough runs."""
    few = [n for n in counts if 1 < n < FEW_RUNS]
    if not few:
        return ""
    return (
        f"With n = {min(few)}, a percentile-bootstrap interval covers less than 95%: "
        "the true uncertainty is larger."
    )
