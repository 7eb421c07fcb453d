"""The parts that show open-loop imagination: errors by horizon, and observed beside imagined."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llmdreamer.analysis import plot_run
from llmdreamer.analysis.part import Part
from llmdreamer.analysis.style import Style
from llmdreamer.evaluation.open_loop_record import CONTINUE, UNITS, Example, OpenLoop

IMAGINED, REPEATED, SEEN = "imagined", "last seen, repeated", "seen and decoded"
STYLES = {
    IMAGINED: Style("#0072B2", "solid"),
    REPEATED: Style("#D55E00", (0, (5, 2))),
    SEEN: Style("#555555", (0, (1, 1.2))),
}
SHORT = {IMAGINED: "imagined", REPEATED: "repeated", SEEN: "seen"}  # heads of columns
MOST_NUMBERS = 6  # of a vector that are drawn
MOST_PICTURES = 12  # columns of a strip


def errors(found: OpenLoop) -> Part:
    """Prediction error by horizon, as a table and a panel per quantity."""
    title = "Prediction error by horizon"
    steps = np.arange(1, found.horizon + 1)
    table = pd.DataFrame({"steps ahead": steps, "windows": found.windows})
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name, one in found.errors.items():
        curves = {IMAGINED: one.imagined, REPEATED: one.repeated, SEEN: one.posterior}
        for curve, values in curves.items():
            table[f"{name} {SHORT[curve]}"] = [_shown(value) for value in values]
        if any(np.isfinite(values).any() for values in curves.values()):
            panels[name] = {curve: (steps, values) for curve, values in curves.items()}
    text = [_claim(found), *_few(found)]
    units = {name: UNITS[name.partition("/")[0]] for name in panels}
    figures = (
        {"prediction-error": plot_run.named_lines(panels, STYLES, "steps ahead", units)}
        if panels
        else {}
    )
    return Part(title, text, [table], figures)


def examples(found: OpenLoop) -> Part:
    """One window of every observation that the world model decodes."""
    text = [
        f"One window: {found.context} rows looked at, then {found.horizon} imagined from the actions "
        "that were taken. Band: all imagined trajectories."
    ]
    figures: dict[str, Figure] = {}
    for name, example in found.examples.items():
        kind, _, key = name.partition("/")
        file = f"imagined-{key}".replace("/", "-")
        if kind == "image":
            figures[file] = _strip(example, found.context)
            text.append(f"{key}: up to the last look, the rows below show what was seen, decoded.")
            continue
        chosen = _most_varied(example)
        if len(chosen) < example.observed.shape[1]:
            text.append(
                f"{key}: {len(chosen)} of {example.observed.shape[1]} numbers, those that vary most."
            )
        figures[file] = _trajectories(example, found.context, key, chosen)
    if not figures:
        text = ["The world model decodes no observation: there is nothing to show."]
    return Part("Observed and imagined", text, figures=figures)


def everything(found: OpenLoop) -> list[Part]:
    return [errors(found), examples(found)]


def _claim(found: OpenLoop) -> str:
    """How far ahead imagination is better than standing still, for each quantity but continuing."""
    told = []
    for name, one in found.errors.items():
        if name == CONTINUE:
            continue
        better = one.imagined < one.repeated
        ahead = found.horizon if better.all() else int(np.argmin(better))
        told.append(f"{name}: {_steps(ahead)}")
    return f"Imagining is better than repeating what was last seen: {'; '.join(told)}."


def _steps(ahead: int) -> str:
    """How many steps from the first on."""
    return "not even 1 step ahead" if ahead == 0 else f"{ahead} step{'s' * (ahead > 1)} ahead"


def _few(found: OpenLoop) -> list[str]:
    first, last = int(found.windows[0]), int(found.windows[-1])
    line = f"{first} windows of experience"
    return [f"{line}." if last == first else f"{line}; {last} of their episodes go on to the end."]


def _shown(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4g}"


def _most_varied(example: Example) -> list[int]:
    spread = example.observed.std(0)
    return sorted(np.argsort(-spread, kind="stable")[:MOST_NUMBERS].tolist())


def _trajectories(example: Example, context: int, key: str, chosen: list[int]) -> Figure:
    time = np.arange(1.0 - context, len(example.observed) - context + 1)
    # Trajectories are drawn from the last row that was seen on, as it was decoded.
    start = np.repeat(example.posterior[None, context - 1 : context], len(example.imagined), 0)
    imagined = np.concatenate([start, example.imagined], 1)
    panels = {
        key if example.observed.shape[1] == 1 else f"{key}[{number}]": plot_run.Foretold(
            time, example.observed[:, number], imagined[:, :, number]
        )
        for number in chosen
    }
    return plot_run.foretold(panels, "policy steps after the last look", "as the agent sees it")


def _strip(example: Example, context: int) -> Figure:
    """Rows: observed, imagined (what is seen is decoded in the columns before the last look)."""
    total = len(example.observed)
    spread = np.linspace(0, total - 1, min(total, MOST_PICTURES)).round().astype(int)
    shown = np.union1d(spread, [context - 1])
    rows = {"observed": example.observed[shown]}
    for number, imagined in enumerate(example.imagined, 1):
        whole = np.concatenate([example.posterior[:context], imagined])
        rows[f"imagined {number}"] = whole[shown]
    return plot_run.strips(rows, [int(column) + 1 - context for column in shown])
