"""Sections on an Optuna study: counts of its trials, and figures of parameters and results."""

from __future__ import annotations

import time
from pathlib import Path

from matplotlib.figure import Figure

from llmdreamer.analysis import plot_study
from llmdreamer.analysis.section import Section, save_section
from llmdreamer.analysis.statements import FEW_RUNS
from llmdreamer.sweep.studies.results import StudyResults, importances, open_study, read_study
from llmdreamer.utils.errors import ConfigError


def all_sections(storage: str, name: str | None = None) -> list[Section]:
    """Draw all figures of a study; if it cannot be opened, say why."""
    try:
        study = open_study(storage, name)
    except ConfigError as error:
        return [Section("Study", [str(error)])]
    results = read_study(study)
    counts = ", ".join(f"{n} {state}" for state, n in sorted(results.counts.items()))
    text = [f"Study {results.name}: {counts or 'no trials yet'}."]
    figures: dict[str, Figure] = {}
    if len(results.maximize) > 1:
        figures |= _several_objectives(results)
    elif results.in_state("COMPLETE"):
        figures |= _single_objective(results)
        try:
            figures["importances"] = plot_study.importances(
                importances(study), results.objectives[0]
            )
            if (done := len(results.in_state("COMPLETE"))) < FEW_RUNS:
                text.append(f"With {done} complete trials, importances are only a rough hint.")
        except ConfigError as error:
            text.append(str(error))
    elif counts:
        text.append("No trial is complete, so there is nothing to compare yet.")
    if any(trial.started is not None for trial in results.trials):
        figures["timeline"] = plot_study.timeline(results, time.time())
    sections = [
        Section(name.replace("-", " ").capitalize(), figures={f"study-{name}": figure})
        for name, figure in figures.items()
    ]
    return [Section("Study", text), *sections]


def save_figures(storage: str, name: str, folder: Path) -> None:
    """Write the figures of a study as PNG files; none if it cannot be opened."""
    for section in all_sections(storage, name):
        save_section(section, folder, ("png",))


def _single_objective(results: StudyResults) -> dict[str, Figure]:
    figures = {"history": plot_study.history(results)}
    if any(trial.params for trial in results.in_state("COMPLETE")):
        figures["slices"] = plot_study.slices(results)
        figures["parallel-coordinates"] = plot_study.parallel(results)
    if any(trial.curve for trial in results.trials):
        figures["intermediate-values"] = plot_study.curves(results)
    return figures


def _several_objectives(results: StudyResults) -> dict[str, Figure]:
    return (
        {"pareto-front": plot_study.pareto_front(results)} if results.in_state("COMPLETE") else {}
    )
