"""Styles of figures: an arm has the same color and dashes everywhere, and its name beside its line.

The colors are those of Okabe and Ito, which are distinct for color-blind readers. Dashes and names
distinguish the arms in black and white. A line of a single point gets a marker, or it would be invisible.
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
from matplotlib.ticker import EngFormatter

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ARM_STYLES: dict[str, tuple[str, Any]] = {
    "scratch": ("#0072B2", "solid"),
    "gru": ("#D55E00", (0, (5, 2))),
    "pretrained-full": ("#009E73", (0, (7, 2, 1, 2))),
    "pretrained-lora": ("#CC79A7", (0, (1, 1.2))),
    "random-frozen-lora": ("#E69F00", (0, (3, 1, 1, 1, 1, 1))),
    "reference": ("#000000", (0, (10, 3))),
    # labels of results pages; gpt2 from scratch is the arm `scratch`
    "gpt2": ("#0072B2", "solid"),
    "smollm2": ("#56B4E9", (0, (6, 1, 1, 1))),
    "qwen3": ("#882255", (0, (4, 1))),
    "pythia": ("#332288", (0, (2, 1))),
    "mamba": ("#8C564B", (0, (8, 1, 2, 1))),
    "mamba2": ("#117733", (0, (3, 2, 1, 2))),
    "coupled": ("#CC6677", (0, (9, 2))),
    # published methods in gray, the darkest first; black is our own reference
    "DreamerV3": ("#5A5A5A", "solid"),
    "D4PG": ("#777777", (0, (4, 2))),
    "DMPO": ("#777777", (0, (1, 1.5))),
    "PPO": ("#AAAAAA", "solid"),
}
_OTHER_STYLES: list[tuple[str, Any]] = [
    ("#56B4E9", (0, (4, 1, 4, 3))),
    ("#7F7F7F", (0, (2, 2))),
    ("#8C564B", (0, (8, 1, 2, 1))),
]
PALETTE = [*list(_ARM_STYLES.values())[:6], *_OTHER_STYLES]
"""Colors and dashes of lines that are not arms; all dashes differ."""
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "*": "★"}
MAX_ARMS = 12
"""Largest number of lines in a panel that a reader can distinguish."""
TEXT_LINE_HEIGHT = 0.065
"""Height of a line of text beside the axis, as a share of the axis."""
LOWEST_NAME, HIGHEST_NAME = 0.0, 1.05
"""Limits of the names beside the axis, as shares of its height, as far as the names fit."""
NAME_POSITION = 1.03
"""Left edge of the names, as a share of the width of the axis."""
NAME_LENGTH = 30
"""Characters after which a name is wrapped."""


@dataclass(frozen=True)
class Style:
    """Color, dashes and marker of a line."""

    color: str
    dash: Any
    marker: str = ""

    def line(self, points: int = 1) -> dict[str, Any]:
        """Return keyword arguments for `plot`; at most about ten points carry the marker."""
        return {
            "color": self.color,
            "linestyle": self.dash,
            "marker": self.marker or ("o" if points == 1 else ""),
            "ms": 5,
            "markevery": max(1, points // 10),
        }

    @property
    def text_color(self) -> tuple[float, ...]:
        """The color, darkened if it is too light for text."""
        red, green, blue = to_rgb(self.color)
        brightness = 0.299 * red + 0.587 * green + 0.114 * blue
        factor = min(1.0, 0.42 / max(brightness, 1e-9))
        return (red * factor, green * factor, blue * factor)

    def display_name(self, label: str) -> str:
        """Return the text beside the line, with the line's marker if it has one."""
        return wrap(f"{_MARKERS[self.marker]} {label}" if self.marker else label)


def wrap(label: str) -> str:
    """Wrap a name so that it fits beside a figure."""
    return escape_math("\n".join(textwrap.wrap(label, NAME_LENGTH, break_long_words=False)))


def escape_math(text: str) -> str:
    """Escape dollar signs, which matplotlib would parse as a formula."""
    return text.replace("$", r"\$")


def arm_styles(labels: Sequence[str]) -> dict[str, Style]:
    """Return a style for each label. Variants of an arm (`scratch lr=...`) differ in their marker only."""
    variants: dict[str, list[str]] = {}
    for label in sorted(labels):
        variants.setdefault(label.split(" ")[0], []).append(label)
    by_label = {}
    for arm, labels_of_arm in variants.items():
        color, dash = (
            _ARM_STYLES.get(arm) or _OTHER_STYLES[zlib.crc32(arm.encode()) % len(_OTHER_STYLES)]
        )
        markers = [""] if len(labels_of_arm) == 1 else list(_MARKERS)
        for number, label in enumerate(labels_of_arm):
            by_label[label] = Style(color, dash, markers[number % len(markers)])
    return by_label


def single_axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    return figure, figure.add_subplot()


def panel_grid(count: int, size: tuple[float, float]) -> tuple[list[Axes], Figure]:
    """Create `count` panels of `size` inches in two columns."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return list(axes[:count]), figure


def format_axis(axis: Axes, xlabel: str, ylabel: str, title: str = "") -> None:
    axis.set_xlabel(escape_math(xlabel))
    axis.set_ylabel(escape_math(ylabel))
    if title:
        axis.set_title(escape_math(title), fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", color="#E5E5E5", lw=0.6)
    axis.set_axisbelow(True)
    if max(map(abs, axis.get_xlim())) >= 10_000:
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))


def label_line_ends(
    axis: Axes, ends: Mapping[str, tuple[float, float]], line_styles: Mapping[str, Style]
) -> None:
    """Write each name to the right of the axis, level with the end of its line, without overlaps.

    A name inside the axis would hide other lines, and its marker would look like a point of the data.
    """
    left, right = axis.get_xlim()
    scale = np.log10 if axis.get_yscale() == "log" else float
    limits = axis.get_ylim()
    low, high = (float(scale(end)) for end in limits)
    names = {label: line_styles[label].display_name(label) for label in ends}
    labels = sorted(ends, key=lambda name: ends[name][1])
    # As shares of the height of the axis, from the bottom.
    heights = [TEXT_LINE_HEIGHT * (1 + names[label].count("\n")) for label in labels]
    positions = [(float(scale(ends[label][1])) - low) / (high - low) for label in labels]
    centers = _spread(positions, heights, LOWEST_NAME, HIGHEST_NAME)
    for label, y in zip(labels, centers, strict=True):
        color = line_styles[label].text_color
        axis.annotate(
            names[label],
            ends[label],
            (NAME_POSITION, y),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=color,
            annotation_clip=False,
            # From the left edge of the name; from its middle it would cross other names.
            arrowprops={
                "arrowstyle": "-",
                "color": color,
                "alpha": 0.6,
                "lw": 0.5,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )
    axis.set_ylim(*limits)
    axis.set_xlim(left, right)


def _spread(
    positions: Sequence[float], heights: Sequence[float], low: float, high: float
) -> list[float]:
    """Return the vertical centers of texts, moved apart so that they do not overlap.

    Texts that would overlap form a stack, centered on the mean of their positions. Stacks that do not
    fit between `low` and `high` extend above `high`.

    Args:
        positions: desired centers, ascending.
    """
    stacks: list[tuple[list[int], float, float]] = []  # members, lower and upper end
    for number in range(len(positions)):
        stack = [number]
        while True:
            height = sum(heights[i] for i in stack)
            start = float(np.mean([positions[i] for i in stack])) - height / 2
            start = max(low, min(start, high - height))
            if not stacks or stacks[-1][2] <= start:
                break
            stack = stacks.pop()[0] + stack
        stacks.append((stack, start, start + height))
    centers = []
    for stack, start, _ in stacks:
        ends = start + np.cumsum([heights[i] for i in stack])
        centers += [float(end) - heights[i] / 2 for i, end in zip(stack, ends, strict=True)]
    return centers
