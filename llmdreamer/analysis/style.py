"""How figures look: an arm has one colour and one line style everywhere, and its name beside its line.

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
from matplotlib.ticker import EngFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES: dict[str, tuple[str, Any]] = {
    "scratch": ("#0072B2", "solid"),
    "gru": ("#D55E00", (0, (5, 2))),
    "pretrained-full": ("#009E73", (0, (7, 2, 1, 2))),
    "pretrained-lora": ("#CC79A7", (0, (1, 1.2))),
    "random-frozen-lora": ("#E69F00", (0, (3, 1, 1, 1, 1, 1))),
    "reference": ("#000000", (0, (10, 3))),
    # published methods, in greys, the darkest first; black is the reference of our own runs
    "DreamerV3": ("#5A5A5A", "solid"),
    "D4PG": ("#777777", (0, (4, 2))),
    "DMPO": ("#777777", (0, (1, 1.5))),
    "PPO": ("#AAAAAA", "solid"),
}
_OTHERS: list[tuple[str, Any]] = [
    ("#56B4E9", (0, (4, 1, 4, 3))),
    ("#7F7F7F", (0, (2, 2))),
    ("#8C564B", (0, (8, 1, 2, 1))),
]
PALETTE = [*list(_DASHES.values())[:6], *_OTHERS]
"""For lines that are no arms: no two share a dash."""
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
MOST_ARMS = 12
"""Lines in one panel that a reader can still tell apart."""
LINE = 0.065
"""Height of a name beside a line, as a share of the axis."""
FLOOR, CEILING = 0.0, 1.05
"""Between these shares of the axis names are written, as far as they fit."""


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
    return plain("\n".join(textwrap.wrap(label, 30, break_long_words=False)))


def plain(text: str) -> str:
    """A name out of a store, which may hold what matplotlib would read as a formula, and refuse."""
    return text.replace("$", r"\$")


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


def single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    return figure, figure.add_subplot()


def grid(count: int, size: tuple[float, float]) -> tuple[list[Axes], Figure]:
    """Two columns of panels, as many as are needed."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return list(axes[:count]), figure


def tidy(axis: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    axis.set_xlabel(plain(xlabel))
    axis.set_ylabel(plain(ylabel))
    if title:
        axis.set_title(plain(title), fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#E5E5E5", lw=0.6)
    axis.set_axisbelow(True)
    if max(map(abs, axis.get_xlim())) >= 10_000:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def name_ends(
    axis: Axes, ends: Mapping[str, tuple[float, float]], chosen: Mapping[str, Style]
) -> None:
    """Write each name at the right of its line's end, apart from those that end near it."""
    left, right = axis.get_xlim()
    scale = np.log10 if axis.get_yscale() == "log" else float
    low, high = (float(scale(end)) for end in axis.get_ylim())
    limits = axis.get_ylim()
    names = {label: chosen[label].name(label) for label in ends}
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for labels in _overlapping(ends, names, 0.016 * (right - left)):
        # In shares of the axis' height, from the x-axis up.
        heights = [LINE * (1 + names[label].count("\n")) for label in labels]
        wanted = [(float(scale(ends[label][1])) - low) / (high - low) for label in labels]
        for label, place in zip(labels, _spread(wanted, heights, FLOOR, CEILING), strict=True):
            color = chosen[label].ink
            axis.annotate(
                names[label],
                ends[label],
                (ends[label][0] + 0.03 * (right - left), place),
                textcoords=("data", "axes fraction"),
                va="center",
                fontsize=9,
                color=color,
                path_effects=halo,
                annotation_clip=False,
                # From the name's left edge: from its middle it would run through other names.
                arrowprops={
                    "arrowstyle": "-",
                    "color": color,
                    "lw": 0.5,
                    "relpos": (0, 0.5),
                    "shrinkA": 1,
                    "shrinkB": 3,
                },
            )
    axis.set_ylim(*limits)
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


def _spread(
    places: Sequence[float], heights: Sequence[float], floor: float, ceiling: float
) -> list[float]:
    """Middles of texts that do not overlap, each heap of them around the ascending places they want.

    Those that do not fit between `floor` and `ceiling` go on above it.
    """
    heaps: list[tuple[list[int], float, float]] = []  # members, lower and upper end
    for number in range(len(places)):
        heap = [number]
        while True:
            height = sum(heights[i] for i in heap)
            start = float(np.mean([places[i] for i in heap])) - height / 2
            start = max(floor, min(start, ceiling - height))
            if not heaps or heaps[-1][2] <= start:
                break
            heap = heaps.pop()[0] + heap
        heaps.append((heap, start, start + height))
    found = []
    for heap, start, _ in heaps:
        ends = start + np.cumsum([heights[i] for i in heap])
        found += [float(end) - heights[i] / 2 for i, end in zip(heap, ends, strict=True)]
    return found
