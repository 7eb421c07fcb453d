"""Draws one run: its metrics, its adapters, what it foretold beside what came."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from llmdreamer.analysis.aggregate import Array
from llmdreamer.analysis.style import PALETTE, Style, grid, name_ends, single, tidy


def lines(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]],
    xlabel: str,
    units: Mapping[str, str],
    logarithmic: Container[str] = (),
) -> Figure:
    """Small panels of one run: named (x, y) series by the panel they share, each named at its end.

    Scales begin at zero unless something is below it; those of `logarithmic` are so if they can be.
    """
    axes, figure = grid(len(panels), (5.4, 2.9))
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        ends, chosen = {}, {}
        told = _short_names(list(series))
        for number, (name, (x, y)) in enumerate(series.items()):
            style = Style(*PALETTE[number % len(PALETTE)])
            axis.plot(x, y, lw=1.3, label=name, **style.line(len(x)))
            if (finite := np.isfinite(y)).any():
                ends[told[name]] = (float(x[finite][-1]), float(y[finite][-1]))
                chosen[told[name]] = style
        lowest = min((y[np.isfinite(y)].min(initial=np.inf) for _, y in series.values()))
        if title in logarithmic and lowest > 0:
            axis.set_yscale("log")
        elif lowest >= 0:
            axis.set_ylim(bottom=0)
        tidy(axis, xlabel, units.get(title, ""), title)
        if len(series) > 1:
            name_ends(axis, ends, chosen)
    return figure


def _short_names(names: Sequence[str]) -> dict[str, str]:
    """Metrics of one panel without what they share: `time/replay_share` is `replay` among shares."""
    last = [name.rpartition("/")[2] for name in names]
    short = last if len(set(last)) == len(names) else list(names)
    while len(names) > 1:
        tail = "_" + short[0].rpartition("_")[2]
        if not all(name.endswith(tail) for name in short):
            break
        short = [name.removesuffix(tail) for name in short]
    return {name: each.replace("_", " ") for name, each in zip(names, short, strict=True)}


def named_lines(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]],
    chosen: Mapping[str, Style],
    xlabel: str,
    units: Mapping[str, str],
) -> Figure:
    """Panels whose lines are the same few things, each named at its end."""
    axes, figure = grid(len(panels), (5.6, 3.1))
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        ends = {}
        for name, (x, y) in series.items():
            told = np.isfinite(y)
            if not told.any():
                continue
            axis.plot(x, y, lw=2, **chosen[name].line(len(x)))
            ends[name] = (float(x[told][-1]), float(y[told][-1]))
        # Errors from zero on; of shares right, which lie near one, the part that matters.
        low, high = axis.get_ylim()
        is_share = "share" in units.get(title, "")
        axis.set_ylim(*((min(low, 0.9), 1.01) if is_share else (0.0, high)))
        tidy(axis, xlabel, units.get(title, ""), title)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        name_ends(axis, ends, chosen)
    return figure


@dataclass(frozen=True)
class Foretold:
    """One number over C + H steps, and n trajectories of its last H, from step C on."""

    time: Array  # (C + H,), 0 at the last look
    observed: Array  # (C + H,)
    imagined: Array  # (n, H + 1)


def foretold(panels: Mapping[str, Foretold], xlabel: str, ylabel: str) -> Figure:
    """Observed against imagined: a band over all trajectories, their median, and one of them."""
    axes, figure = grid(len(panels), (4.8, 2.6))
    color = "#0072B2"
    for place, (axis, (title, one)) in enumerate(zip(axes, panels.items(), strict=False)):
        ahead = one.time[one.time >= 0]
        low, high = one.imagined.min(0), one.imagined.max(0)
        axis.fill_between(ahead, low, high, color=color, alpha=0.2, lw=0, label="imagined: range")
        middle = np.median(one.imagined, 0)
        axis.plot(ahead, middle, color=color, lw=2, ls=(0, (5, 2)), label="imagined: median")
        axis.plot(ahead, one.imagined[0], color=color, lw=0.8, label="imagined: one of them")
        axis.plot(one.time, one.observed, color="#000000", lw=1.5, label="observed")
        axis.axvline(0, color="#999999", lw=1, ls=(0, (1, 1.5)))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        tidy(axis, xlabel, ylabel, title)
        if place == 0:
            axis.legend(frameon=False, fontsize=7, handlelength=3.5)
    return figure


def strips(rows: Mapping[str, Array], columns: Sequence[int]) -> Figure:
    """Pictures (columns, H, W, C) uint8 in rows; a column is a step, 0 the last look."""
    figure = Figure(
        figsize=(1.1 + 0.95 * len(columns), 0.4 + 1.0 * len(rows)), layout="constrained"
    )
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(
                picture[..., 0] if picture.shape[-1] == 1 else picture[..., :3], cmap="gray"
            )
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axis, step in zip(axes[0], columns, strict=True):
        axis.set_title("last look" if step == 0 else f"{step:+d}", fontsize=9)
    figure.supxlabel("policy steps after the last look", fontsize=9)
    return figure


def by_block(layers: Mapping[str, Sequence[tuple[int, float, float]]]) -> Figure:
    """A line a kind of layer, from (block, first value, last value): hollow first, full last."""
    figure, axis = single()
    ends, chosen = {}, {}
    for number, (name, rows) in enumerate(layers.items()):
        color, dash = PALETTE[number % len(PALETTE)]
        block, first, last = zip(*rows, strict=True)
        axis.plot(block, first, "o", mfc="white", mec=color, ms=5)
        axis.plot(block, last, "o", color=color, linestyle=dash, lw=1.5, ms=5)
        ends[name], chosen[name] = (float(block[-1]), float(last[-1])), Style(color, dash)
    axis.set_ylim(0.0, 1.08 * axis.get_ylim()[1])
    tidy(axis, "block of the backbone", "norm of the change / norm of the weights")
    axis.set_title("full: at the run's end; hollow: when first logged", fontsize=9, loc="left")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    name_ends(axis, ends, chosen)
    return figure
