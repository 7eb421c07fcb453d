"""Draws figures of a single run: metrics, adapters, imagined beside observed values."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llmdreamer.analysis.aggregate import Array
from llmdreamer.analysis.style import (
    PALETTE,
    Style,
    format_axis,
    label_line_ends,
    panel_grid,
    single_axes,
)


def metric_panels(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]],
    xlabel: str,
    units: Mapping[str, str],
    logarithmic: Container[str] = (),
) -> Figure:
    """Draw a panel for each group of named (x, y) series, with names at the ends of the lines.

    The y axis starts at zero unless a value is negative. Panels in `logarithmic` have a logarithmic
    y axis if all their values are positive.
    """
    axes, figure = panel_grid(len(panels), (5.4, 2.9))
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        ends, line_styles = {}, {}
        short_names = _short_names(list(series))
        for number, (name, (x, y)) in enumerate(series.items()):
            style = Style(*PALETTE[number % len(PALETTE)])
            axis.plot(x, y, lw=1.3, label=name, **style.line(len(x)))
            if (finite := np.isfinite(y)).any():
                ends[short_names[name]] = (float(x[finite][-1]), float(y[finite][-1]))
                line_styles[short_names[name]] = style
        lowest = min((y[np.isfinite(y)].min(initial=np.inf) for _, y in series.values()))
        if title in logarithmic and lowest > 0:
            axis.set_yscale("log")
        elif lowest >= 0:
            axis.set_ylim(bottom=0)
        format_axis(axis, xlabel, units.get(title, ""), title)
        if len(series) > 1:
            label_line_ends(axis, ends, line_styles)
    return figure


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Drop what the names of a panel have in common: `time/replay_share` becomes `replay`."""
    last = [name.rpartition("/")[2] for name in names]
    short = last if len(set(last)) == len(names) else list(names)
    while len(names) > 1:
        suffix = "_" + short[0].rpartition("_")[2]
        if not all(name.endswith(suffix) for name in short):
            break
        short = [name.removesuffix(suffix) for name in short]
    return {name: each.replace("_", " ") for name, each in zip(names, short, strict=True)}


def styled_panels(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]],
    line_styles: Mapping[str, Style],
    xlabel: str,
    units: Mapping[str, str],
) -> Figure:
    """Draw panels with the same few lines, each with its name at its end."""
    axes, figure = panel_grid(len(panels), (5.6, 3.1))
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        ends = {}
        for name, (x, y) in series.items():
            finite = np.isfinite(y)
            if not finite.any():
                continue
            axis.plot(x, y, lw=2, **line_styles[name].line(len(x)))
            ends[name] = (float(x[finite][-1]), float(y[finite][-1]))
        # Errors start at zero. Accuracies are close to one, so only that range is shown.
        low, high = axis.get_ylim()
        is_share = "share" in units.get(title, "")
        axis.set_ylim(*((min(low, 0.9), 1.01) if is_share else (0.0, high)))
        format_axis(axis, xlabel, units.get(title, ""), title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        label_line_ends(axis, ends, line_styles)
    return figure


@dataclass(frozen=True)
class Prediction:
    """An observed value over C + H steps, and n imagined trajectories of its last H steps."""

    time: Array  # (C + H,), 0 at the last observation before imagination
    observed: Array  # (C + H,)
    imagined: Array  # (n, H + 1), starting at step C


def predictions(panels: Mapping[str, Prediction], xlabel: str, ylabel: str) -> Figure:
    """Draw observed values, the range and median of all imagined trajectories, and one of them."""
    axes, figure = panel_grid(len(panels), (4.8, 2.6))
    color = "#0072B2"
    for number, (axis, (title, value)) in enumerate(zip(axes, panels.items(), strict=False)):
        ahead = value.time[value.time >= 0]
        low, high = value.imagined.min(0), value.imagined.max(0)
        axis.fill_between(ahead, low, high, color=color, alpha=0.2, lw=0, label="imagined: range")
        median = np.median(value.imagined, 0)
        axis.plot(ahead, median, color=color, lw=2, ls=(0, (5, 2)), label="imagined: median")
        axis.plot(ahead, value.imagined[0], color=color, lw=0.8, label="imagined: one trajectory")
        axis.plot(value.time, value.observed, color="#000000", lw=1.5, label="observed")
        axis.axvline(0, color="#999999", lw=1, ls=(0, (1, 1.5)))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        format_axis(axis, xlabel, ylabel, title)
        if number == 0:
            axis.legend(frameon=False, fontsize=7, handlelength=3.5)
    return figure


def image_strips(rows: Mapping[str, Array], columns: Sequence[int]) -> Figure:
    """Draw rows of images.

    Args:
        rows: (columns, H, W, C) uint8 by name.
        columns: the step of each column; 0 is the last observation before imagination.
    """
    figure = Figure(
        figsize=(1.1 + 0.95 * len(columns), 0.4 + 1.0 * len(rows)), layout="constrained"
    )
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for row_axes, (name, images) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(row_axes, images, strict=True):
            axis.imshow(image[..., 0] if image.shape[-1] == 1 else image[..., :3], cmap="gray")
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        row_axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axis, step in zip(axes[0], columns, strict=True):
        axis.set_title("0" if step == 0 else f"{step:+d}", fontsize=9)
    figure.supxlabel("policy steps after the last observation", fontsize=9)
    return figure


def values_by_block(layers: Mapping[str, Sequence[tuple[int, float, float]]]) -> Figure:
    """Draw a line for each kind of layer, from (block, first value, last value)."""
    figure, axis = single_axes()
    ends, line_styles = {}, {}
    for number, (name, values) in enumerate(layers.items()):
        color, dash = PALETTE[number % len(PALETTE)]
        block, first, last = zip(*values, strict=True)
        axis.plot(block, first, "o", mfc="white", mec=color, ms=5)
        axis.plot(block, last, "o", color=color, linestyle=dash, lw=1.5, ms=5)
        ends[name], line_styles[name] = (float(block[-1]), float(last[-1])), Style(color, dash)
    axis.set_ylim(0.0, 1.08 * axis.get_ylim()[1])
    format_axis(axis, "block of the backbone", "norm of the change / norm of the weights")
    axis.set_title("filled: last value; hollow: first value", fontsize=9, loc="left")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_line_ends(axis, ends, line_styles)
    return figure
