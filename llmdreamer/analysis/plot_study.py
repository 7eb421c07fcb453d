"""Draws an Optuna study. Shapes and fillings show how a trial ended, so no color is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from llmdreamer.analysis.style import escape_math, format_axis, single_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from llmdreamer.sweep.studies.results import StudyResults, TrialResult

BLACK, BLUE, GRAY = "#000000", "#0072B2", "#999999"
# By state: marker, fill of marker and bar, hatch of the bar.
_STATE_STYLES = {
    "COMPLETE": ("o", BLUE, ""),
    "PRUNED": ("v", "#FFFFFF", "////"),
    "FAIL": ("X", BLACK, "xxxx"),
    "RUNNING": ("D", "#DDDDDD", "...."),
}
MAX_SLICES = 9


def history(results: StudyResults) -> Figure:
    """Draw the objective of each trial, and the best so far."""
    figure, axis = single_axes()
    _plot_trials(axis, results, lambda trial: trial.number)
    sign = 1.0 if results.maximize[0] else -1.0
    done = [trial for trial in results.in_state("COMPLETE") if trial.values]
    best = sign * np.maximum.accumulate([sign * trial.values[0] for trial in done])
    numbers = [trial.number for trial in done]
    axis.step(numbers, best, where="post", color=BLACK, lw=1.2, label="best so far")
    format_axis(axis, "trial", results.objectives[0])
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(frameon=False, fontsize=8)
    return figure


def importances(shares: Mapping[str, float], objective: str) -> Figure:
    """Draw a bar with its value for each parameter."""
    figure = Figure(figsize=(6.4, 1.0 + 0.35 * len(shares)), layout="constrained")
    axis = figure.add_subplot()
    names = list(shares)[::-1]
    axis.barh(names, [shares[name] for name in names], color=BLUE, height=0.6)
    for bar, name in enumerate(names):
        axis.annotate(f" {shares[name]:.2f}", (shares[name], bar), va="center", fontsize=9)
    format_axis(axis, f"share of the variation of {objective} that it explains", "")
    axis.set_xlim(0, 1.12 * max(shares.values()))
    axis.grid(visible=False)
    return figure


def slices(results: StudyResults) -> Figure:
    """Draw a panel for each parameter: the objective against its value."""
    names = sorted({name for trial in results.trials for name in trial.params})[:MAX_SLICES]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.8 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axis, name in zip(axes, names, strict=False):
        positions = _positions(results, name)
        _plot_trials(
            axis, results, lambda trial, name=name, at=positions: at.get(trial.params.get(name))
        )
        format_axis(axis, name, results.objectives[0] if axis in axes[::columns] else "")
        _set_scale(axis, positions, name in results.log_scaled)
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def parallel(results: StudyResults) -> Figure:
    """Draw a line for each complete trial through its parameters to its objective; the best tenth thick."""
    done = [trial for trial in results.in_state("COMPLETE") if trial.values]
    names = sorted({name for trial in done for name in trial.params})
    sign = 1.0 if results.maximize[0] else -1.0
    ranked = sorted(done, key=lambda trial: sign * trial.values[0])  # the best are drawn last
    axes_of = {name: _positions(results, name) for name in names}
    figure = Figure(figsize=(1.9 * (len(names) + 1), 3.8), layout="constrained")
    axis = figure.add_subplot()
    values = np.array([trial.values[0] for trial in ranked])
    for number, trial in enumerate(ranked):
        heights = [
            _height(axes_of[name], trial.params.get(name), name in results.log_scaled)
            for name in names
        ]
        heights.append(_relative(values.min(), values.max(), trial.values[0]))
        is_best = number >= len(ranked) - max(1, len(ranked) // 10)
        color, width = (BLACK, 2.2) if is_best else (GRAY, 0.9)
        axis.plot(range(len(heights)), heights, color=color, lw=width)
    ends = [_range_labels(axes_of[name]) for name in names]
    ends.append((f"{values.min():.4g}", f"{values.max():.4g}"))
    for column, (low, high) in enumerate(ends):
        axis.axvline(column, color="#CCCCCC", lw=0.8, zorder=0)
        for label, y, side in ((low, -0.03, "top"), (high, 1.03, "bottom")):
            axis.text(column, y, escape_math(label), ha="center", va=side, fontsize=8)
    axis.set_xticks(range(len(ends)), [*map(_two_lines, names), results.objectives[0]], fontsize=8)
    axis.tick_params(length=0, pad=14)
    axis.set_yticks([])
    axis.set_ylim(-0.02, 1.02)
    axis.spines[:].set_visible(False)
    figure.suptitle("thick: the best tenth of the complete trials", fontsize=9)
    return figure


def curves(results: StudyResults) -> Figure:
    """Draw the objective that each trial reported during training; pruned trials end in a triangle."""
    figure, axis = single_axes()
    best = results.best
    for trial in results.trials:
        if not trial.curve or trial is best:
            continue
        x, y = zip(*trial.curve, strict=True)
        is_pruned = trial.state == "PRUNED"
        axis.plot(x, y, color=GRAY, lw=0.9, ls=(0, (3, 2)) if is_pruned else "solid")
        if is_pruned:
            axis.plot(x[-1], y[-1], "v", mfc="#FFFFFF", mec=BLACK, ms=6)
    handles = [Line2D([], [], color=GRAY, lw=0.9, label="trial")]
    if any(trial.curve for trial in results.in_state("PRUNED")):
        marks: dict[str, Any] = {"ls": (0, (3, 2)), "marker": "v", "mfc": "#FFF", "mec": BLACK}
        handles.append(Line2D([], [], color=GRAY, label="pruned", **marks))
    if best is not None and best.curve:
        axis.plot(*zip(*best.curve, strict=True), color=BLACK, lw=2)
        handles.append(Line2D([], [], color=BLACK, lw=2, label=f"best: trial {best.number}"))
    format_axis(axis, "environment steps", results.objectives[0])
    axis.legend(handles=handles, frameon=False, fontsize=8)
    return figure


def pareto_front(results: StudyResults) -> Figure:
    """Draw the first two objectives of every trial, with a line through the Pareto front."""
    figure, axis = single_axes()
    done = [trial for trial in results.in_state("COMPLETE") if len(trial.values) > 1]
    best = sorted(
        (trial for trial in done if trial.number in results.pareto_front),
        key=lambda trial: trial.values,
    )
    others = [trial.values for trial in done if trial.number not in results.pareto_front]
    if others:
        x, y, *_ = zip(*others, strict=True)
        axis.plot(x, y, "o", mfc="#FFFFFF", mec=BLUE, ms=6, label="trial")
    if best:
        x, y, *_ = zip(*(trial.values for trial in best), strict=True)
        axis.plot(x, y, "s-", color=BLACK, ms=6, lw=1, label="Pareto front")
    for trial in best[:20]:
        axis.annotate(
            f" {trial.number}",
            (trial.values[0], trial.values[1]), fontsize=8, xytext=(4, 4),
            textcoords="offset points",
        )  # fmt: skip
    format_axis(axis, results.objectives[0], results.objectives[1])
    axis.legend(frameon=False, fontsize=8)
    return figure


def timeline(results: StudyResults, now: float) -> Figure:
    """Draw a bar for each trial from its start to its end, or to `now` (epoch seconds)."""
    started = [trial for trial in results.trials if trial.started is not None]
    figure = Figure(figsize=(6.4, min(9.0, 1.2 + 0.12 * len(started))), layout="constrained")
    axis = figure.add_subplot()
    first = min(trial.started or now for trial in started)
    longest = max((trial.ended or now) for trial in started) - first
    scale, unit = (3600.0, "hours") if longest > 7200 else (60.0, "minutes")
    for trial in started:
        start, end = ((at - first) / scale for at in (trial.started or now, trial.ended or now))
        _, fill, hatch = _STATE_STYLES.get(trial.state, _STATE_STYLES["RUNNING"])
        axis.barh(
            trial.number, end - start, 0.8, start, color=fill, hatch=hatch, edgecolor=BLACK, lw=0.6
        )
    handles = [
        Patch(facecolor=fill, hatch=hatch, edgecolor=BLACK, label=state.lower())
        for state, (_, fill, hatch) in _STATE_STYLES.items()
        if results.in_state(state)
    ]
    format_axis(axis, f"{unit} since the study began", "trial")
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    axis.legend(handles=handles, frameon=False, fontsize=8)
    return figure


def _plot_trials(axis: Axes, results: StudyResults, x: Any) -> None:
    """Plot every complete trial, and every pruned one at its last reported value."""
    for state in ("COMPLETE", "PRUNED"):
        marker, fill, _ = _STATE_STYLES[state]
        points = []
        for trial in results.in_state(state):
            value = _value(trial)
            if value is not None and x(trial) is not None:
                points.append((x(trial), value))
        if points:
            axis.plot(
                *zip(*points, strict=True), marker, mfc=fill, mec=BLUE, ms=5, label=state.lower()
            )


def _value(trial: TrialResult) -> float | None:
    if trial.values:
        return trial.values[0]
    return trial.curve[-1][1] if trial.curve else None


def _positions(results: StudyResults, name: str) -> dict[Any, float]:
    """Return the position of each value of a parameter: numbers by value, everything else in order."""
    values = {trial.params[name] for trial in results.trials if name in trial.params}
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return {value: float(value) for value in sorted(values)}
    return {value: float(position) for position, value in enumerate(sorted(values, key=str))}


def _set_scale(axis: Axes, positions: Mapping[Any, float], is_log: bool) -> None:
    if is_log:
        axis.set_xscale("log")
        low, high = axis.get_xlim()
        # Fewer labels on a wide range, so that they do not overlap.
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
    elif any(not isinstance(value, int | float) or isinstance(value, bool) for value in positions):
        axis.set_xticks(list(positions.values()), [escape_math(str(value)) for value in positions])
        axis.set_xlim(-0.5, len(positions) - 0.5)


def _height(positions: Mapping[Any, float], value: Any, is_log: bool) -> float:
    if value not in positions:
        return float("nan")
    scale = np.log if is_log else float
    low, high = (float(scale(end)) for end in (min(positions.values()), max(positions.values())))
    return _relative(low, high, float(scale(positions[value])))


def _relative(low: float, high: float, value: float) -> float:
    return 0.5 if high <= low else (value - low) / (high - low)


def _range_labels(positions: Mapping[Any, float]) -> tuple[str, str]:
    ordered: Sequence[Any] = sorted(positions, key=lambda value: positions[value])
    low, high = (
        f"{value:.4g}" if isinstance(value, float) else str(value)
        for value in (ordered[0], ordered[-1])
    )
    return low, high


def _two_lines(name: str) -> str:
    """Break a dotted key before its last part."""
    head, _, last = name.rpartition(".")
    return f"{head}.\n{last}" if head else last
