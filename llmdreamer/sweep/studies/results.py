"""Reads an Optuna study: its trials, their results, and the importance of each parameter."""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdreamer.sweep.studies.sqlite import SQLITE_PREFIX, sqlite_path, sqlite_url
from llmdreamer.utils.errors import ConfigError, did_you_mean
from llmdreamer.utils.redact import redact

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

SIGNATURE_ATTRIBUTE = "llmdreamer"
"""The user attribute in which a study records what it searches."""
_SIGNATURE_PARTS = ("space", "value", "fixed")


@dataclass(frozen=True)
class TrialResult:
    """One trial; times are in epoch seconds."""

    number: int
    state: str  # COMPLETE, PRUNED, FAIL, RUNNING, WAITING
    values: list[float]  # one for each objective; empty unless the trial is complete
    params: dict[str, Any]
    curve: list[tuple[int, float]]  # (step, objective) as reported, sorted by step
    started: float | None
    ended: float | None


@dataclass(frozen=True)
class StudyResults:
    """A study as plain data."""

    name: str
    objectives: list[str]
    maximize: list[bool]  # one for each objective
    trials: list[TrialResult]
    log_scaled: set[str]  # parameters that are searched on a logarithmic scale
    pareto_front: set[int]  # numbers of the trials; empty for a single objective

    def in_state(self, *states: str) -> list[TrialResult]:
        return [trial for trial in self.trials if trial.state in states]

    @property
    def best(self) -> TrialResult | None:
        """The best complete trial; None with several objectives."""
        complete = [trial for trial in self.in_state("COMPLETE") if trial.values]
        if not complete or len(self.maximize) > 1:
            return None
        sign = 1.0 if self.maximize[0] else -1.0
        return max(complete, key=lambda trial: sign * trial.values[0])

    @property
    def counts(self) -> dict[str, int]:
        """The number of trials by state."""
        return dict(Counter(trial.state for trial in self.trials))


def open_study(storage: str, name: str | None = None) -> Study:
    """Open the study `name`, or the only study in the storage.

    Args:
        storage: the URL or file of a database, or the folder of a sweep.

    Raises:
        ConfigError: if the storage or the study does not exist.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about missing widgets for progress bars in a notebook
        import optuna

    if "://" not in storage:
        path = Path(storage).resolve()
        storage = sqlite_url(path / "study.db" if path.is_dir() else path)
    # Optuna would create a missing file.
    if storage.startswith(SQLITE_PREFIX) and not (path := sqlite_path(storage)).exists():
        raise ConfigError(f"there is no study: the file {path} does not exist")
    redacted = redact(storage)
    try:
        names = optuna.get_all_study_names(storage)
    except Exception as error:
        # The exception is sqlalchemy's, a database driver's or Optuna's.
        line = redact((str(error).splitlines() or [""])[0])
        raise ConfigError(f"{redacted} holds no Optuna studies ({line[:120]})") from error
    if not names:
        raise ConfigError(f"{redacted} holds no study yet")
    if name is None and len(names) > 1:
        choices = ", ".join(sorted(names))
        raise ConfigError(f"{redacted} holds several studies; choose from {choices}")
    chosen = name if name is not None else names[0]
    if chosen not in names:
        raise ConfigError(f"{redacted} has no study {chosen!r}{did_you_mean(chosen, names)}")
    return optuna.load_study(study_name=chosen, storage=storage)


def read_study(study: Study) -> StudyResults:
    """Read the results of a study."""
    trials = study.get_trials(deepcopy=False)
    log_scaled = {
        name
        for trial in trials
        for name, distribution in trial.distributions.items()
        if getattr(distribution, "log", False)
    }
    maximize = [direction.name == "MAXIMIZE" for direction in study.directions]
    objectives = study.metric_names or _objective_names(study, len(maximize))
    front = {trial.number for trial in study.best_trials} if len(maximize) > 1 else set()
    results = [_trial_result(trial) for trial in trials]
    return StudyResults(study.study_name, list(objectives), maximize, results, log_scaled, front)


def _trial_result(trial: FrozenTrial) -> TrialResult:
    curve = sorted(trial.intermediate_values.items())
    # Optuna gives a pruned trial its last reported value; that is not a result.
    is_complete = trial.state.name == "COMPLETE" and trial.values is not None
    started, ended = trial.datetime_start, trial.datetime_complete
    return TrialResult(
        number=trial.number,
        state=trial.state.name,
        values=list(trial.values) if is_complete else [],
        params=dict(trial.params),
        curve=[(step, float(value)) for step, value in curve],
        started=None if started is None else started.timestamp(),
        ended=None if ended is None else ended.timestamp(),
    )


def _objective_names(study: Study, count: int) -> list[str]:
    """Return the metrics in the study's signature; without a signature, numbered names."""
    signature = stored_signature(study)
    names = [] if signature is None else signature["value"]["objective"].split(", ")
    if len(names) == count and all(names):
        return [str(name) for name in names]
    return ["objective" if count == 1 else f"objective {k + 1}" for k in range(count)]


def stored_signature(study: Study) -> dict[str, Any] | None:
    """Return the study's record of what it searches, or None if it has none.

    Raises:
        ConfigError: if the record is damaged.
    """
    if SIGNATURE_ATTRIBUTE not in study.user_attrs:
        return None
    signature = study.user_attrs[SIGNATURE_ATTRIBUTE]
    is_complete = isinstance(signature, dict) and all(
        isinstance(signature.get(part), dict) for part in _SIGNATURE_PARTS
    )
    if not is_complete or not isinstance(signature["value"].get("objective"), str):
        raise ConfigError(
            f"study {study.study_name}: its attribute {SIGNATURE_ATTRIBUTE!r} is damaged; restore the"
            " database, or set another hydra.sweeper.study_name"
        )
    return dict(signature)


def importances(study: Study) -> dict[str, float]:
    """Return the share of the objective's variance that each parameter explains, largest first, sum 1.

    Raises:
        ConfigError: if importances are undefined: one trial, one parameter, or equal values.
    """
    import optuna

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the function is experimental
            shares = optuna.importance.get_param_importances(study)
    except (ValueError, RuntimeError, ImportError) as error:
        raise ConfigError(f"No importances: {error}") from error
    if not shares:
        raise ConfigError("No importances: no parameter was varied.")
    return {name: float(share) for name, share in shares.items()}
