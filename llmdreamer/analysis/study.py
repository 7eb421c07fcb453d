"""The part of an Optuna study: its trials and Optuna's own pictures of them."""

from __future__ import annotations

import os

from llmdreamer.analysis.part import Part
from llmdreamer.errors import ConfigError


def everything(storage: str, name: str | None = None) -> list[Part]:
    """History, importances, slices, parallel coordinates, timeline and pruned curves, or a sentence."""
    os.environ.setdefault("MPLBACKEND", "agg")  # Optuna draws through pyplot, which wants a screen
    from llmdreamer.sweep.pictures import draw, open_study, summary

    try:
        study = open_study(storage, name)
    except ConfigError as error:
        return [Part("Study", [str(error)])]
    counts = ", ".join(f"{n} {state}" for state, n in sorted(summary(study).items()))
    text = [f"Study {study.study_name}: {counts or 'no trials yet'}."]
    if not counts:
        return [Part("Study", text)]
    figures, notes = draw(study)
    parts = [
        Part(figure.replace("-", " ").capitalize(), figures={f"study-{figure}": drawn})
        for figure, drawn in figures.items()
    ]
    return [Part("Study", text + notes), *parts]
