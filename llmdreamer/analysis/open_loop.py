"""Sections on open-loop evaluation: errors by horizon, and observed beside imagined values."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llmdreamer.analysis import plot_run
from llmdreamer.analysis.section import Section
from llmdreamer.analysis.style import Style
from llmdreamer.evaluation.open_loop_record import CONTINUE, UNITS, Example, OpenLoop

IMAGINED, REPEATED, RECONSTRUCTED = "imagined", "last observation repeated", "reconstructed"
STYLES = {
    IMAGINED: Style("#0072B2", "solid"),
    REPEATED: Style("#D55E00", (0, (5, 2))),
    RECONSTRUCTED: Style("#555555", (0, (1, 1.2))),
}
COLUMN_NAMES = {IMAGINED: "imagined", REPEATED: "repeated", RECONSTRUCTED: "reconstructed"}
MAX_VECTOR_ENTRIES = 6  # drawn from one vector
MAX_IMAGES = 12  # columns of a strip


def errors(results: OpenLoop) -> Section:
    """Show the prediction error by horizon, as a table and a panel for each quantity."""
    title = "Prediction error by horizon"
    steps = np.arange(1, results.horizon + 1)
    table = pd.DataFrame({"steps ahead": steps, "windows": results.windows})
    panels: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for name, quantity in results.errors.items():
        curves = {
            IMAGINED: quantity.imagined,
            REPEATED: quantity.repeated,
            RECONSTRUCTED: quantity.posterior,
        }
        for curve, values in curves.items():
            table[f"{name} {COLUMN_NAMES[curve]}"] = [_format_value(value) for value in values]
        if any(np.isfinite(values).any() for values in curves.values()):
            panels[name] = {curve: (steps, values) for curve, values in curves.items()}
    text = [_comparison(results), *_window_counts(results)]
    units = {name: UNITS[name.partition("/")[0]] for name in panels}
    figures = (
        {"prediction-error": plot_run.styled_panels(panels, STYLES, "steps ahead", units)}
        if panels
        else {}
    )
    return Section(title, text, [table], figures)


def examples(results: OpenLoop) -> Section:
    """Show one window for each observation that the world model decodes."""
    text = [
        f"One window: {results.context} observed steps, then {results.horizon} imagined from the "
        "actions that were taken. Band: all imagined trajectories."
    ]
    figures: dict[str, Figure] = {}
    for name, example in results.examples.items():
        kind, _, key = name.partition("/")
        file = f"imagined-{key}".replace("/", "-")
        if kind == "image":
            figures[file] = _strip(example, results.context)
            text.append(f"{key}: up to the last observation, imagined rows show reconstructions.")
            continue
        chosen = _most_varied(example)
        if len(chosen) < example.observed.shape[1]:
            text.append(
                f"{key}: the {len(chosen)} of {example.observed.shape[1]} entries that vary most."
            )
        figures[file] = _trajectories(example, results.context, key, chosen)
    if not figures:
        text = ["The world model decodes no observation, so there are no examples."]
    return Section("Observed and imagined", text, figures=figures)


def all_sections(results: OpenLoop) -> list[Section]:
    return [errors(results), examples(results)]


def _comparison(results: OpenLoop) -> str:
    """State how far ahead imagination beats repeating the last observation, for all but `continue`."""
    statements = []
    for name, quantity in results.errors.items():
        if name == CONTINUE:
            continue
        better = quantity.imagined < quantity.repeated
        ahead = results.horizon if better.all() else int(np.argmin(better))
        statements.append(f"{name}: {_steps_ahead(ahead)}")
    return f"Imagination is better than repeating the last observation: {'; '.join(statements)}."


def _steps_ahead(ahead: int) -> str:
    return "not even 1 step ahead" if ahead == 0 else f"{ahead} step{'s' * (ahead > 1)} ahead"


def _window_counts(results: OpenLoop) -> list[str]:
    first, last = int(results.windows[0]), int(results.windows[-1])
    text = f"{first} windows of experience"
    return [f"{text}." if last == first else f"{text}; {last} of them reach the full horizon."]


def _format_value(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.4g}"


def _most_varied(example: Example) -> list[int]:
    spread = example.observed.std(0)
    return sorted(np.argsort(-spread, kind="stable")[:MAX_VECTOR_ENTRIES].tolist())


def _trajectories(example: Example, context: int, key: str, chosen: list[int]) -> Figure:
    time = np.arange(1.0 - context, len(example.observed) - context + 1)
    # Trajectories start at the reconstruction of the last observed step.
    start = np.repeat(example.posterior[None, context - 1 : context], len(example.imagined), 0)
    imagined = np.concatenate([start, example.imagined], 1)
    panels = {
        key if example.observed.shape[1] == 1 else f"{key}[{number}]": plot_run.Prediction(
            time, example.observed[:, number], imagined[:, :, number]
        )
        for number in chosen
    }
    return plot_run.predictions(
        panels, "policy steps after the last observation", "value as the agent sees it"
    )


def _strip(example: Example, context: int) -> Figure:
    """Draw rows of images: observed, then imagined, with reconstructions up to the last observation."""
    total = len(example.observed)
    spread = np.linspace(0, total - 1, min(total, MAX_IMAGES)).round().astype(int)
    shown = np.union1d(spread, [context - 1])
    rows = {"observed": example.observed[shown]}
    for number, imagined in enumerate(example.imagined, 1):
        images = np.concatenate([example.posterior[:context], imagined])
        rows[f"imagined {number}"] = images[shown]
    return plot_run.image_strips(rows, [int(column) + 1 - context for column in shown])
