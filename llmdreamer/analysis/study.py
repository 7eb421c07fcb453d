"""The parts of an Optuna study: its trials, and pictures of what was tried and what came of it."""

from __future__ import annotations

import time

from matplotlib.figure import Figure

from llmdreamer.analysis import plot_study
from llmdreamer.analysis.part import Part
from llmdreamer.analysis.sentence import FEW
from llmdreamer.sweep.studies.results import StudyResults, importances, open_study, read_study
from llmdreamer.utils.errors import ConfigError


def everything(storage: str, name: str | None = None) -> list[Part]:
    """History, importances, slices, parallel coordinates, timeline and pruned curves, or a sentence."""
    try:
        study = open_study(storage, name)
    except ConfigError as error:
        return [Part("Study", [str(error)])]
    results = read_study(study)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(results.counts.items()))
    text = [f"Study {results.name}: {counts or 'no trials yet'}."]
    figures: dict[str, Figure] = {}
    if len(results.maximize) > 1:
        figures |= _of_several(results)
    elif results.in_state("COMPLETE"):
        figures |= _of_one(results)
        try:
            figures["importances"] = plot_study.importances(
                importances(study), results.objectives[0]
            )
            if (done := len(results.in_state("COMPLETE"))) < FEW:
                text.append(f"Of {done} complete trials, importances are a hint at most.")
        except ConfigError as error:
            text.append(str(error))
    elif counts:
        text.append("No trial is complete: there is nothing to compare yet.")
    if any(trial.started is not None for trial in results.trials):
        figures["timeline"] = plot_study.timeline(results, time.time())
    parts = [
        Part(figure.replace("-", " ").capitalize(), figures={f"study-{figure}": drawn})
        for figure, drawn in figures.items()
    ]
    return [Part("Study", text), *parts]


def _of_one(results: StudyResults) -> dict[str, Figure]:
    figures = {"history": plot_study.history(results)}
    if any(trial.params for trial in results.in_state("COMPLETE")):
        figures["slices"] = plot_study.slices(results)
        figures["parallel-coordinates"] = plot_study.parallel(results)
    if any(trial.curve for trial in results.trials):
        figures["intermediate-values"] = plot_study.curves(results)
    return figures


def _of_several(results: StudyResults) -> dict[str, Figure]:
    return {"pareto-front": plot_study.front(results)} if results.in_state("COMPLETE") else {}
