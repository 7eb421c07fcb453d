"""Opens an Optuna study for reading, and draws it with Optuna's own pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdreamer.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from optuna.study import Study

_SQLITE = "sqlite:///"


def open_study(storage: str, name: str | None = None) -> Study:
    """The study `name`, or the only one there is.

    Raises:
        ConfigError: in one sentence, if there is no such storage or study.
    """
    import optuna

    # Optuna makes the file that is not there.
    if storage.startswith(_SQLITE) and not Path(storage.removeprefix(_SQLITE)).exists():
        raise ConfigError(f"there is no study: no file {storage.removeprefix(_SQLITE)}")
    try:
        names = optuna.get_all_study_names(storage)
    except Exception as error:
        # sqlalchemy's, a driver's or Optuna's own, by what is not right with the storage.
        line = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{storage} holds no Optuna studies ({line[:120]})") from error
    if not names:
        raise ConfigError(f"{storage} holds no study yet")
    if name is None and len(names) > 1:
        raise ConfigError(
            f"{storage} holds several studies; choose from {', '.join(sorted(names))}"
        )
    chosen = name if name is not None else names[0]
    if chosen not in names:
        raise ConfigError(f"{storage} has no study {chosen!r}{did_you_mean(chosen, names)}")
    return optuna.load_study(study_name=chosen, storage=storage)


def summary(study: Study) -> dict[str, int]:
    """Trials by state."""
    counts: dict[str, int] = {}
    for trial in study.get_trials(deepcopy=False):
        counts[trial.state.name] = counts.get(trial.state.name, 0) + 1
    return counts


def draw(study: Study) -> tuple[dict[str, Any], list[str]]:
    """Optuna's figures by name, and a sentence for each that this study does not support."""
    import matplotlib.pyplot as plt
    import optuna.visualization.matplotlib as pictures

    drawers: dict[str, Callable[[Study], Any]]
    if len(study.directions) > 1:
        drawers = {"pareto-front": pictures.plot_pareto_front, "timeline": pictures.plot_timeline}
    else:
        drawers = {
            "history": pictures.plot_optimization_history,
            "importances": pictures.plot_param_importances,
            "slices": pictures.plot_slice,
            "parallel-coordinates": pictures.plot_parallel_coordinate,
            "timeline": pictures.plot_timeline,
            "intermediate-values": pictures.plot_intermediate_values,
        }
    figures, notes = {}, []
    for name, drawer in drawers.items():
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # "experimental", and matplotlib's about Optuna's layout
            try:
                axes = drawer(study)
            except (ValueError, RuntimeError, ImportError) as error:
                # A study of one trial, of equal values, of one parameter: each picture has needs.
                notes.append(f"No picture of {name.replace('-', ' ')}: {error}")
                continue
        figure = axes.figure if hasattr(axes, "figure") else axes.ravel()[0].figure
        figures[name] = figure
        plt.close(figure)
    return figures, notes
