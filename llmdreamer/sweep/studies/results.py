"""Reads an Optuna study: what was tried, what came of it, and which parameters mattered."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdreamer.sweep.studies.sqlite import SQLITE, path_of, url_of
from llmdreamer.utils.errors import ConfigError, did_you_mean
from llmdreamer.utils.redact import redact

if TYPE_CHECKING:
    from optuna.study import Study

SIGNED = "llmdreamer"
"""The attribute of a study of ours that says what it searches."""


@dataclass(frozen=True)
class Trial:
    """One trial; times in epoch seconds."""

    number: int
    state: str  # COMPLETE, PRUNED, FAIL, RUNNING, WAITING
    values: list[float]  # of the objectives; empty unless it is complete
    params: dict[str, Any]
    curve: list[tuple[int, float]]  # (step, objective), as they were reported
    started: float | None
    ended: float | None


@dataclass(frozen=True)
class Tried:
    """A study."""

    name: str
    objectives: list[str]
    maximize: list[bool]
    trials: list[Trial]
    log: set[str]  # parameters searched on a logarithmic scale
    front: set[
        int
    ]  # trials that none is better than in every objective; of several objectives only

    def of(self, *states: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.state in states]

    @property
    def best(self) -> Trial | None:
        """The best complete trial of a single objective."""
        done = [trial for trial in self.of("COMPLETE") if trial.values]
        if not done or len(self.maximize) > 1:
            return None
        sign = 1.0 if self.maximize[0] else -1.0
        return max(done, key=lambda trial: sign * trial.values[0])

    @property
    def counts(self) -> dict[str, int]:
        """Trials by state."""
        return dict(Counter(trial.state for trial in self.trials))


def open_study(storage: str, name: str | None = None) -> Study:
    """The study `name`, or the only one there is.

    Args:
        storage: a database's URL or file, or the folder of a sweep.

    Raises:
        ConfigError: in one sentence, if there is no such storage or study.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook, that progress bars have no widgets
        import optuna

    if "://" not in storage:
        path = Path(storage).resolve()
        storage = url_of(path / "study.db" if path.is_dir() else path)
    # Optuna makes the file that is not there.
    if storage.startswith(SQLITE) and not (path := path_of(storage)).exists():
        raise ConfigError(f"there is no study: no file {path}")
    told = redact(storage)
    try:
        names = optuna.get_all_study_names(storage)
    except Exception as error:
        # sqlalchemy's, a driver's or Optuna's own, by what is not right with the storage.
        line = redact((str(error).splitlines() or [""])[0])
        raise ConfigError(f"{told} holds no Optuna studies ({line[:120]})") from error
    if not names:
        raise ConfigError(f"{told} holds no study yet")
    if name is None and len(names) > 1:
        raise ConfigError(f"{told} holds several studies; choose from {', '.join(sorted(names))}")
    chosen = name if name is not None else names[0]
    if chosen not in names:
        raise ConfigError(f"{told} has no study {chosen!r}{did_you_mean(chosen, names)}")
    return optuna.load_study(study_name=chosen, storage=storage)


def tried(study: Study) -> Tried:
    """What a study has tried, as plain data."""
    from optuna.trial import TrialState

    trials, log = [], set()
    for trial in study.get_trials(deepcopy=False):
        log |= {name for name, one in trial.distributions.items() if getattr(one, "log", False)}
        curve = sorted(trial.intermediate_values.items())
        # Who knows the last value of a pruned trial counts it as its own.
        known = trial.state is TrialState.COMPLETE
        trials.append(
            Trial(
                trial.number,
                trial.state.name,
                list(trial.values) if known and trial.values is not None else [],
                dict(trial.params),
                [(step, float(value)) for step, value in curve],
                *(
                    None if at is None else at.timestamp()
                    for at in (trial.datetime_start, trial.datetime_complete)
                ),
            )
        )
    maximize = [direction.name == "MAXIMIZE" for direction in study.directions]
    names = study.metric_names or _objectives(study, len(maximize))
    front = {trial.number for trial in study.best_trials} if len(maximize) > 1 else set()
    return Tried(study.study_name, list(names), maximize, trials, log, front)


def _objectives(study: Study, count: int) -> list[str]:
    """The metrics that are searched for, by what a study of ours says of itself; else numbers."""
    names = study.user_attrs.get(SIGNED, {"value": {"objective": ""}})["value"]["objective"].split(
        ", "
    )
    if len(names) == count and all(names):
        return [str(name) for name in names]
    return ["objective" if count == 1 else f"objective {k + 1}" for k in range(count)]


def importances(study: Study) -> dict[str, float]:
    """How much of the objective's spread each parameter explains, largest first; they add up to 1.

    Raises:
        ConfigError: if that cannot be told: of one trial, of one parameter, of equal values.
    """
    import optuna

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "experimental"
            found = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"No importances: {error}") from error
    if not found:
        raise ConfigError("No importances: no parameter was varied.")
    return {name: float(value) for name, value in found.items()}
