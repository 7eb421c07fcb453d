"""Draws arms beside each other: curves, profiles, estimates with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from llmdreamer.analysis.aggregate import Array, Estimate
from llmdreamer.analysis.style import Style, name_ends, single, styles, tidy, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Curve:
    """One arm's curve: its statistic with interval on a grid, and the runs behind it."""

    grid: Array
    estimate: Estimate
    runs: Sequence[tuple[Array, Array]] = ()  # (x, y) each


def curves(
    panels: Mapping[str, Mapping[str, Curve]],
    xlabel: str,
    ylabel: str,
    *,
    runs: bool = True,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A panel per environment, a line with a band per arm; thin lines are single runs.

    Args:
        limits: of every panel's y axis, by which the names at the lines' ends are placed; None: each its own.
    """
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    chosen = styles(sorted({label for arms in panels.values() for label in arms}))
    width = (5.4 if columns == 1 else 3.8) + 0.075 * min(
        30, max(map(len, chosen))
    )  # the names' room
    figure = Figure(figsize=(width * columns, 3.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, arms) in zip(axes, panels.items(), strict=False):
        for label, curve in arms.items():
            _curve(axis, curve, chosen[label], runs)
        ends = {
            label: (curve.grid[-1], float(curve.estimate.value[-1]))
            for label, curve in arms.items()
        }
        tidy(axis, xlabel, ylabel, title)
        if limits is not None:
            axis.set_ylim(*limits)
        name_ends(axis, ends, chosen)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def profiles(thresholds: Array, arms: Mapping[str, Estimate], xlabel: str) -> Figure:
    """Share of runs above each threshold."""
    figure, axis = single()
    figure.set_figwidth(6.4 + 0.085 * min(30, max(map(len, arms))))  # the names' room
    chosen = styles(list(arms))
    alpha = 0.15 if len(arms) <= 3 else 0.07  # bands of many arms lie upon each other
    for label, found in arms.items():
        style = chosen[label]
        line = style.line(len(thresholds))
        axis.plot(thresholds, found.value, label=wrap(label), drawstyle="steps-post", **line)
        axis.fill_between(
            thresholds, found.low, found.high, color=style.color, alpha=alpha, lw=0, step="post"
        )
    tidy(axis, xlabel, "share of runs above")
    axis.set_ylim(-0.02, 1.02)
    # All lines end in the lower right: names there would lie in a heap.
    axis.legend(frameon=False, handlelength=4, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def forest(
    rows: Sequence[tuple[str, Estimate]], xlabel: str, reference: float, notes: Sequence[str] = ()
) -> Figure:
    """One estimate with interval a row, the line of no difference, and a note at the right."""
    names = [line for name, _ in rows for line in name.split("\n")]
    width = 4.5 + 0.075 * max(map(len, names)) + 0.06 * max(map(len, notes), default=0)
    height = 1.0 + sum(0.15 + 0.18 * (1 + name.count("\n")) for name, _ in rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.add_subplot()
    for place, (_, found) in enumerate(rows):
        y = len(rows) - 1 - place
        axis.plot([float(found.low), float(found.high)], [y, y], color="#333333", lw=2)
        axis.plot(float(found.value), y, "o", color="#333333", ms=6)
    axis.axvline(reference, color="#999999", lw=1, ls=(0, (4, 3)))
    axis.set_yticks(range(len(rows))[::-1], [name for name, _ in rows])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    tidy(axis, xlabel, "")
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    for place, note in enumerate(notes):
        axis.annotate(
            note,
            (1.01, len(rows) - 1 - place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    return figure


def _curve(axis: Axes, curve: Curve, style: Style, runs: bool) -> None:
    if runs:
        for x, y in curve.runs:
            # Marks on each of them would hide the curve that carries its own.
            thin = style.line(len(x)) | ({"ms": 3} if len(x) == 1 else {"marker": ""})
            axis.plot(x, y, lw=0.7, alpha=0.35, **thin)
    axis.plot(curve.grid, curve.estimate.value, lw=2, **style.line(len(curve.grid)))
    low, high = curve.estimate.low, curve.estimate.high
    if np.isnan(low).all():
        return
    if len(curve.grid) == 1:
        axis.vlines(curve.grid, low, high, color=style.color, lw=1.2)
    else:
        axis.fill_between(curve.grid, low, high, color=style.color, alpha=0.15, lw=0)
