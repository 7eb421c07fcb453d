"""The number of trials of a study, the values that it accepts, and the signature of what it searches."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_origin

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import FrozenTrial, TrialState

from llmdreamer.config import Config, leaves
from llmdreamer.config.identity import identity
from llmdreamer.sweep.plan import Plan, to_override
from llmdreamer.sweep.studies.distributions import SearchSpace, space_size
from llmdreamer.sweep.studies.results import SIGNATURE_ATTRIBUTE, stored_signature
from llmdreamer.utils.errors import ConfigError

# Keys that hold a mapping. The signature has the keys inside instead, and nothing for an empty mapping.
_MAPPINGS = [key for key, kind in leaves().items() if kind is Any or get_origin(kind) is dict]
_UNSET = "unset"
DRAW_ATTRIBUTE = "fixed_params"  # Optuna's own: `Trial._suggest` takes its values from there


def trial_budget(plan: Plan, space: SearchSpace) -> int:
    """Return `n_trials`, at most the number of points of the space: no point is run twice.

    Raises:
        ConfigError: if `n_trials` is below 1.
    """
    n_trials = plan.settings.n_trials
    assert n_trials is not None
    if n_trials < 1:
        raise ConfigError(f"hydra.sweeper.n_trials={n_trials}: must be >= 1")
    size = space_size(space)
    return n_trials if size is None else min(n_trials, size)


def check_study_settings(plan: Plan) -> None:
    """Refuse settings that a study does not support.

    Raises:
        ConfigError: for `rerun`, pruning with several objectives, or wilcoxon with one seed.
    """
    settings = plan.settings
    if plan.rerun:
        raise ConfigError(
            "rerun=true is for grids; for a new search set another hydra.sweeper.study_name"
        )
    if len(plan.objectives) > 1 and settings.pruner != "none":
        raise ConfigError(
            f"hydra.sweeper.pruner={settings.pruner}: a study of several objectives"
            " cannot prune; set hydra.sweeper.pruner=none"
        )
    if settings.pruner == "wilcoxon" and len(plan.seeds) < 2:
        raise ConfigError("hydra.sweeper.pruner=wilcoxon compares seeds: set seeds=2 or more")


def first_value(distribution: BaseDistribution) -> object:
    choices = getattr(distribution, "choices", None)
    return choices[0] if choices else getattr(distribution, "low", None)


def params_in_space(params: dict[str, Any], space: SearchSpace) -> dict[str, Any]:
    """Return the parameters whose key is in the space and whose value its distribution contains.

    A database is data that others may write. Nothing else in it may become an override of a command.
    """
    accepted = {}
    for key, distribution in space.items():
        if key not in params:
            continue
        try:
            internal = distribution.to_internal_repr(params[key])
        except (TypeError, ValueError):  # a wrong type, or not one of the choices
            continue
        if distribution._contains(internal):
            accepted[key] = distribution.to_external_repr(internal)
    return accepted


def invalid_param(trial: FrozenTrial, space: SearchSpace) -> str | None:
    """Return a swept key whose stored or enqueued value is not in the space, or None."""
    params = stored_params(trial)
    accepted = params_in_space(params, space)
    for key, distribution in space.items():
        # Optuna decodes a stored value by the distribution that is stored with it.
        if trial.distributions.get(key, distribution) != distribution:
            return key
        if key in params and key not in accepted:
            return key
    return None


def unknown_params(trial: FrozenTrial, space: SearchSpace) -> list[str]:
    """Return the stored or enqueued keys that the space does not have."""
    return [key for key in stored_params(trial) if key not in space]


def stored_params(trial: FrozenTrial) -> dict[str, Any]:
    """Return the parameters of a trial that are stored, as values of the trial or as enqueued values."""
    # Optuna takes the values of an enqueued trial even where the distribution does not contain them.
    enqueued = trial.system_attrs.get(DRAW_ATTRIBUTE)
    return (enqueued if isinstance(enqueued, dict) else {}) | trial.params


def to_overrides(params: dict[str, object]) -> list[str]:
    return [f"{key}={to_override(value)}" for key, value in params.items()]


def write_signature(study: optuna.Study, plan: Plan, space: SearchSpace, point: Config) -> None:
    """Write into the study what it searches.

    Args:
        point: the configuration of the space's first point, with the overrides of the study's arm.
    """
    study.set_user_attr(SIGNATURE_ATTRIBUTE, _signature(plan, space, point))


def check_signature(study: optuna.Study, plan: Plan, space: SearchSpace, point: Config) -> None:
    """Refuse to resume a study whose values would not be comparable with the new ones.

    Args:
        point: as in `write_signature`.

    Raises:
        ConfigError: if the directions, the space or the fixed values have changed; once a trial is
            complete, also if the objective or the seeds have.
    """
    advice = "set another hydra.sweeper.study_name"
    old_directions = [direction.name.lower() for direction in study.directions]
    directions = ["maximize" if maximize else "minimize" for maximize in plan.maximize]
    if old_directions != directions:
        raise ConfigError(
            f"study {study.study_name} was made to {' and '.join(old_directions)},"
            f" not {' and '.join(directions)}: {advice}"
        )
    old_signature = stored_signature(study)
    if old_signature is None:  # its driver died before it wrote the signature
        return
    has_values = any(trial.state is TrialState.COMPLETE for trial in study.trials)
    for part, values in _signature(plan, space, point).items():
        if part == "value" and not has_values:
            continue
        for key, old, new in _changes(old_signature[part], values):
            raise ConfigError(
                f"study {study.study_name} was made with {key} {_brief(old)}, not {_brief(new)}:"
                f" {advice}"
            )


def _signature(plan: Plan, space: SearchSpace, point: Config) -> dict[str, dict[str, Any]]:
    distributions = {
        key: json.loads(distribution_to_json(distribution)) for key, distribution in space.items()
    }
    limits = plan.settings.constraints.limits()
    return {
        "space": distributions,
        "value": {"objective": ", ".join(map(str, plan.objectives)), "seeds": plan.seeds},
        "fixed": {
            **{key: value for key, value in identity(point).items() if key not in _MAPPINGS},
            **{f"hydra.sweeper.constraints.{name}": limit for name, limit in limits.items()},
        },
    }


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each key with another value, and both values; keys that both sides have come first."""
    # A key that only one side has often follows from another: `lora.r` is recorded only if `peft` is true.
    one_sided = old.keys() ^ new.keys()
    for key in [*sorted(old.keys() & new.keys()), *sorted(one_sided)]:
        before, after = old.get(key, _UNSET), new.get(key, _UNSET)
        if before != after:
            yield key, before, after


def _brief(value: object) -> str:
    """Write a distribution or a value in short."""
    if isinstance(value, dict) and isinstance(value.get("attributes"), dict):
        attributes = {k: v for k, v in value["attributes"].items() if v not in (None, False)}
        return str(attributes.get("choices", attributes))
    return to_override(value)
