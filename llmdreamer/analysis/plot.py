"""Draws figures that compare arms: curves, performance profiles, estimates with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from llmdreamer.analysis.aggregate import Array, Estimate
from llmdreamer.analysis.style import (
    Style,
    arm_styles,
    format_axis,
    label_line_ends,
    single_axes,
    wrap,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Curve:
    """The curve of an arm: a statistic with its interval on a grid, and the single runs."""

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
    """Draw a panel for each environment with a line and a band for each arm.

    Args:
        runs: also draw the single runs, as thin lines.
        limits: of the y axis of every panel; None: automatic.
    """
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = -(-len(panels) // columns)
    line_styles = arm_styles(sorted({label for arms in panels.values() for label in arms}))
    width = (5.4 if columns == 1 else 3.8) + 0.075 * min(
        30, max(map(len, line_styles))
    )  # room for the names
    figure = Figure(figsize=(width * columns, 3.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (title, arms) in zip(axes, panels.items(), strict=False):
        for label, curve in arms.items():
            _curve(axis, curve, line_styles[label], runs, band_opacity(len(arms)))
        ends = {
            label: (curve.grid[-1], float(curve.estimate.value[-1]))
            for label, curve in arms.items()
        }
        format_axis(axis, xlabel, ylabel, title)
        if limits is not None:
            axis.set_ylim(*limits)
        label_line_ends(axis, ends, line_styles)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def profiles(thresholds: Array, arms: Mapping[str, Estimate], xlabel: str) -> Figure:
    """Draw the share of runs above each threshold."""
    figure, axis = single_axes()
    figure.set_figwidth(6.4 + 0.085 * min(30, max(map(len, arms))))  # room for the names
    line_styles = arm_styles(list(arms))
    for label, estimate in arms.items():
        style = line_styles[label]
        line = style.line(len(thresholds))
        axis.plot(thresholds, estimate.value, label=wrap(label), drawstyle="steps-post", **line)
        axis.fill_between(
            thresholds,
            estimate.low,
            estimate.high,
            color=style.color,
            alpha=band_opacity(len(arms)),
            lw=0,
            step="post",
        )
    format_axis(axis, xlabel, "share of runs above")
    axis.set_ylim(-0.02, 1.02)
    # All lines end in the lower right corner, so names at their ends would overlap.
    axis.legend(frameon=False, handlelength=4, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def forest(
    rows: Sequence[tuple[str, Estimate]], xlabel: str, reference: float, notes: Sequence[str] = ()
) -> Figure:
    """Draw a row for each estimate with its interval, a line at `reference`, and a note at the right."""
    names = [line for name, _ in rows for line in name.split("\n")]
    width = 4.5 + 0.075 * max(map(len, names)) + 0.06 * max(map(len, notes), default=0)
    height = 1.0 + sum(0.15 + 0.18 * (1 + name.count("\n")) for name, _ in rows)
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.add_subplot()
    for row, (_, estimate) in enumerate(rows):
        y = len(rows) - 1 - row
        axis.plot([float(estimate.low), float(estimate.high)], [y, y], color="#333333", lw=2)
        axis.plot(float(estimate.value), y, "o", color="#333333", ms=6)
    axis.axvline(reference, color="#999999", lw=1, ls=(0, (4, 3)))
    axis.set_yticks(range(len(rows))[::-1], [name for name, _ in rows])
    axis.set_ylim(-0.6, len(rows) - 0.4)
    format_axis(axis, xlabel, "")
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
    for row, note in enumerate(notes):
        axis.annotate(
            note,
            (1.01, len(rows) - 1 - row),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
        )
    return figure


def band_opacity(arms: int) -> float:
    """Return the opacity of bands; those of many arms overlap."""
    return 0.15 if arms <= 3 else 0.07


def _curve(axis: Axes, curve: Curve, style: Style, runs: bool, opacity: float) -> None:
    if runs:
        for x, y in curve.runs:
            # Markers on single runs would hide the mean curve, which has its own.
            thin = style.line(len(x)) | ({"ms": 3} if len(x) == 1 else {"marker": ""})
            axis.plot(x, y, lw=0.7, alpha=0.35, **thin)
    axis.plot(curve.grid, curve.estimate.value, lw=2, **style.line(len(curve.grid)))
    low, high = curve.estimate.low, curve.estimate.high
    if np.isnan(low).all():
        return
    if len(curve.grid) == 1:
        axis.vlines(curve.grid, low, high, color=style.color, lw=1.2)
    else:
        axis.fill_between(curve.grid, low, high, color=style.color, alpha=opacity, lw=0)
