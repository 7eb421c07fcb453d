"""The parts of an Optuna study: its trials, and pictures of what was tried and what came of it."""

from __future__ import annotations

import time

from matplotlib.figure import Figure

from llmdreamer.analysis import plot_study
from llmdreamer.analysis.part import Part
from llmdreamer.analysis.sentence import FEW
from llmdreamer.sweep.studies.results import Tried, importances, open_study, tried
from llmdreamer.utils.errors import ConfigError


def everything(storage: str, name: str | None = None) -> list[Part]:
    """History, importances, slices, parallel coordinates, timeline and pruned curves, or a sentence."""
    try:
        study = open_study(storage, name)
    except ConfigError as error:
        return [Part("Study", [str(error)])]
    found = tried(study)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(found.counts.items()))
    text = [f"Study {found.name}: {counts or 'no trials yet'}."]
    figures: dict[str, Figure] = {}
    if len(found.maximize) > 1:
        figures |= _of_several(found)
    elif found.of("COMPLETE"):
        figures |= _of_one(found)
        try:
            figures["importances"] = plot_study.importances(importances(study), found.objectives[0])
            if (done := len(found.of("COMPLETE"))) < FEW:
                text.append(f"Of {done} complete trials, importances are a hint at most.")
        except ConfigError as error:
            text.append(str(error))
    elif counts:
        text.append("No trial is complete: there is nothing to compare yet.")
    if any(trial.started is not None for trial in found.trials):
        figures["timeline"] = plot_study.timeline(found, time.time())
    parts = [
        Part(figure.replace("-", " ").capitalize(), figures={f"study-{figure}": drawn})
        for figure, drawn in figures.items()
    ]
    return [Part("Study", text), *parts]


def _of_one(found: Tried) -> dict[str, Figure]:
    figures = {"history": plot_study.history(found)}
    if any(trial.params for trial in found.of("COMPLETE")):
        figures["slices"] = plot_study.slices(found)
        figures["parallel-coordinates"] = plot_study.parallel(found)
    if any(trial.curve for trial in found.trials):
        figures["intermediate-values"] = plot_study.curves(found)
    return figures


def _of_several(found: Tried) -> dict[str, Figure]:
    return {"pareto-front": plot_study.front(found)} if found.of("COMPLETE") else {}
