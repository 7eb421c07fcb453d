"""Draws: an arm has one colour and one line style everywhere, and its name beside its line.

Colours are Okabe and Ito's, told apart with colour-blind eyes; line styles and names tell the arms
apart where everything is printed in grey. A line of a single point has a mark there, or there would be none.
"""

from __future__ import annotations

import textwrap
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, MaxNLocator

from llmdreamer.analysis.aggregate import Array, Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES: dict[str, tuple[str, Any]] = {
    "scratch": ("#0072B2", "solid"),
    "gru": ("#D55E00", (0, (5, 2))),
    "pretrained-full": ("#009E73", (0, (7, 2, 1, 2))),
    "pretrained-lora": ("#CC79A7", (0, (1, 1.2))),
    "random-frozen-lora": ("#E69F00", (0, (3, 1, 1, 1, 1, 1))),
    "reference": ("#000000", (0, (10, 3))),
    # published methods, in greys: what they are measured against comes first
    "dreamerv3": ("#000000", "solid"),
    "d4pg": ("#777777", (0, (4, 2))),
    "dmpo": ("#777777", (0, (1, 1.5))),
    "ppo_fixhp": ("#AAAAAA", "solid"),
}
_OTHERS: list[tuple[str, Any]] = [
    ("#56B4E9", (0, (4, 1, 4, 3))),
    ("#7F7F7F", (0, (2, 2))),
    ("#8C564B", (0, (8, 1, 2, 1))),
]
_PALETTE = [*list(_DASHES.values())[:6], *_OTHERS]
"""For lines that are no arms: no two share a dash."""
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
MOST_ARMS = 12
"""Lines in one panel that a reader can still tell apart."""


@dataclass(frozen=True)
class Style:
    """How an arm is drawn."""

    color: str
    dash: Any
    marker: str = ""

    def line(self, points: int = 1) -> dict[str, Any]:
        """Keywords of a line; of many points, ten carry the marker."""
        return {
            "color": self.color,
            "linestyle": self.dash,
            "marker": self.marker or ("o" if points == 1 else ""),
            "ms": 5,
            "markevery": max(1, points // 10),
        }

    @property
    def ink(self) -> tuple[float, ...]:
        """The colour as a text needs it: yellows and light greys are too pale to be read."""
        red, green, blue = to_rgb(self.color)
        light = 0.299 * red + 0.587 * green + 0.114 * blue
        darker = min(1.0, 0.42 / max(light, 1e-9))
        return (red * darker, green * darker, blue * darker)

    def name(self, label: str) -> str:
        """What is written beside the line: its marker too, if it has one."""
        return wrap(f"{_MARKERS[self.marker]} {label}" if self.marker else label)


def wrap(label: str) -> str:
    """An arm's name in lines short enough to stand beside a figure."""
    return "\n".join(textwrap.wrap(label, 30, break_long_words=False))


@dataclass(frozen=True)
class Curve:
    """One arm's curve: its statistic with interval on a grid, and the runs behind it."""

    grid: Array
    estimate: Estimate
    runs: Sequence[tuple[Array, Array]] = ()  # (x, y) each


def styles(labels: Sequence[str]) -> dict[str, Style]:
    """A style per label. Variants of an arm (`scratch lr=...`) share its colour, not its marker."""
    variants: dict[str, list[str]] = {}
    for label in sorted(labels):
        variants.setdefault(label.split(" ")[0], []).append(label)
    found = {}
    for arm, same in variants.items():
        color, dash = _DASHES.get(arm) or _OTHERS[zlib.crc32(arm.encode()) % len(_OTHERS)]
        markers = [""] if len(same) == 1 else list(_MARKERS)
        for number, label in enumerate(same):
            found[label] = Style(color, dash, markers[number % len(markers)])
    return found


def curves(
    panels: Mapping[str, Mapping[str, Curve]], xlabel: str, ylabel: str, *, runs: bool = True
) -> Figure:
    """A panel per environment, a line with a band per arm; thin lines are single runs."""
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
        _name_ends(axis, ends, chosen)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    return figure


def profiles(thresholds: Array, arms: Mapping[str, Estimate], xlabel: str) -> Figure:
    """Share of runs above each threshold."""
    figure, axis = _single()
    chosen = styles(list(arms))
    for label, found in arms.items():
        style = chosen[label]
        line = style.line(len(thresholds))
        axis.plot(thresholds, found.value, label=style.name(label), drawstyle="steps-post", **line)
        axis.fill_between(
            thresholds, found.low, found.high, color=style.color, alpha=0.15, lw=0, step="post"
        )
    tidy(axis, xlabel, "share of runs above")
    axis.set_ylim(-0.02, 1.02)
    # All lines run from the upper left to the lower right: names at their ends would lie in a heap.
    axis.legend(frameon=False, handlelength=4)
    return figure


def forest(
    rows: Sequence[tuple[str, Estimate]], xlabel: str, reference: float, notes: Sequence[str] = ()
) -> Figure:
    """One estimate with interval a row, the line of no difference, and a note at the right."""
    names = [line for name, _ in rows for line in name.split("\n")]
    width = 4.5 + 0.075 * max(map(len, names)) + 0.06 * max(map(len, notes), default=0)
    height = 1.0 + sum(0.25 + 0.2 * (1 + name.count("\n")) for name, _ in rows)
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


def lines(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]], xlabel: str, units: Mapping[str, str]
) -> Figure:
    """Small panels of one run: named (x, y) series by the panel they share."""
    axes, figure = _grid(len(panels), (4.8, 2.9))
    for axis, (title, series) in zip(axes, panels.items(), strict=False):
        for number, (name, (x, y)) in enumerate(series.items()):
            style = Style(*_PALETTE[number % len(_PALETTE)])
            axis.plot(x, y, lw=1.3, label=name, **style.line(len(x)))
        tidy(axis, xlabel, units.get(title, ""), title)
        if len(series) > 1:
            axis.legend(frameon=False, fontsize=7, handlelength=3.5)
    return figure


def named_lines(
    panels: Mapping[str, Mapping[str, tuple[Array, Array]]],
    chosen: Mapping[str, Style],
    xlabel: str,
    units: Mapping[str, str],
) -> Figure:
    """Panels whose lines are the same few things, each named at its end."""
    axes, figure = _grid(len(panels), (5.6, 3.1))
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
        _name_ends(axis, ends, chosen)
    return figure


@dataclass(frozen=True)
class Foretold:
    """One number over C + H steps, and n trajectories of its last H, from step C on."""

    time: Array  # (C + H,), 0 at the last look
    observed: Array  # (C + H,)
    imagined: Array  # (n, H + 1)


def foretold(panels: Mapping[str, Foretold], xlabel: str, ylabel: str) -> Figure:
    """Observed against imagined: a band over all trajectories, their median, and one of them."""
    axes, figure = _grid(len(panels), (4.8, 2.6))
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
    figure, axis = _single()
    ends, chosen = {}, {}
    for number, (name, rows) in enumerate(layers.items()):
        color, dash = _PALETTE[number % len(_PALETTE)]
        block, first, last = zip(*rows, strict=True)
        axis.plot(block, first, "o", mfc="white", mec=color, ms=5)
        axis.plot(block, last, "o", color=color, linestyle=dash, lw=1.5, ms=5)
        ends[name], chosen[name] = (float(block[-1]), float(last[-1])), Style(color, dash)
    axis.set_ylim(0.0, 1.08 * axis.get_ylim()[1])
    tidy(axis, "block of the backbone", "norm of the change / norm of the weights")
    axis.set_title("full: at the run's end; hollow: when first logged", fontsize=9, loc="left")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    _name_ends(axis, ends, chosen)
    return figure


def _grid(count: int, size: tuple[float, float]) -> tuple[list[Axes], Figure]:
    """Two columns of panels, as many as are needed."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return list(axes[:count]), figure


def _curve(axis: Axes, curve: Curve, style: Style, runs: bool) -> None:
    if runs:
        for x, y in curve.runs:
            axis.plot(x, y, lw=0.7, alpha=0.35, **style.line(len(x)) | {"ms": 3})
    axis.plot(curve.grid, curve.estimate.value, lw=2, **style.line(len(curve.grid)))
    low, high = curve.estimate.low, curve.estimate.high
    if np.isnan(low).all():
        return
    if len(curve.grid) == 1:
        axis.vlines(curve.grid, low, high, color=style.color, lw=1.2)
    else:
        axis.fill_between(curve.grid, low, high, color=style.color, alpha=0.15, lw=0)


def _name_ends(
    axis: Axes, ends: Mapping[str, tuple[float, float]], chosen: Mapping[str, Style]
) -> None:
    """Write each name at the right of its line's end, apart from those that end near it."""
    low, high = axis.get_ylim()
    left, right = axis.get_xlim()
    gap = 0.065 * (high - low)
    names = {label: chosen[label].name(label) for label in ends}
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for labels in _overlapping(ends, names, 0.016 * (right - left)):
        heights = [gap * (1 + names[label].count("\n")) for label in labels]
        places = _spread([ends[label][1] for label in labels], heights)
        lift = max(0.0, low + heights[0] / 2 - places[0])  # clear of the x-axis
        for label, place in zip(labels, places, strict=True):
            color = chosen[label].ink
            axis.annotate(
                names[label],
                ends[label],
                (ends[label][0] + 0.03 * (right - left), place + lift),
                va="center",
                fontsize=9,
                color=color,
                path_effects=halo,
                annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": color, "lw": 0.5, "shrinkB": 3},
            )
    axis.set_ylim(low, high)
    axis.set_xlim(left, right)


def _overlapping(
    ends: Mapping[str, tuple[float, float]], names: Mapping[str, str], letter: float
) -> list[list[str]]:
    """Labels whose names, written from their ends on, cover a common stretch of x; lowest first."""
    groups: list[list[str]] = []
    reach = -np.inf
    for label in sorted(ends, key=lambda name: ends[name][0]):
        width = letter * (2 + max(map(len, names[label].split("\n"))))
        if ends[label][0] <= reach:
            groups[-1].append(label)
        else:
            groups.append([label])
        reach = max(reach, ends[label][0] + width)
    return [sorted(group, key=lambda name: ends[name][1]) for group in groups]


def _spread(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """Ascending middles moved up until their texts do not overlap, then centred again."""
    moved: list[float] = []
    for number, place in enumerate(places):
        below = moved[-1] + (heights[number - 1] + heights[number]) / 2 if moved else place
        moved.append(max(place, below))
    shift = (sum(moved) - sum(places)) / max(1, len(moved))
    return [place - shift for place in moved]


def _single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    return figure, figure.add_subplot()


def tidy(axis: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    axis.set_xlabel(xlabel)
    axis.set_ylabel(ylabel)
    if title:
        axis.set_title(title, fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#E5E5E5", lw=0.6)
    axis.set_axisbelow(True)
    if max(map(abs, axis.get_xlim())) >= 10_000:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
