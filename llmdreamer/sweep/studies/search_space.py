"""What a study searches: its space, its budget, and whether an old study searched the same."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, get_origin

import optuna
from hydra.core.override_parser.types import Override
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import TrialState

from llmdreamer.config import AS_BEFORE, Config, leaves
from llmdreamer.config.identity import identity, is_among
from llmdreamer.sweep.plan import Plan, to_override
from llmdreamer.sweep.studies.results import SIGNED
from llmdreamer.sweep.studies.samplers import Space, grid_size
from llmdreamer.utils.errors import ConfigError

# Left out where they are so: see `identity`.
_BEFORE_A_CHOICE = AS_BEFORE | {"algo.agent": None, "backbone.factory": None}
_MAPPINGS = [key for key, kind in leaves().items() if kind is Any or get_origin(kind) is dict]
_NOTHING = "nothing"


def space(swept: dict[str, Override]) -> dict[str, BaseDistribution]:
    """The search space in hydra-optuna-sweeper's grammar, by key (with its `+`, if it adds one).

    Raises:
        ConfigError: if a range is empty.
    """
    found = {}
    for override in swept.values():
        try:
            found[override.get_key_element()] = create_optuna_distribution_from_override(override)
        except (ValueError, AssertionError) as error:
            reason = str(error) or "no values, range or interval"
            raise ConfigError(f"{override.input_line}: {reason}") from error
    if not found:
        raise ConfigError("hydra.sweeper.n_trials: a study needs values to choose from, key=A,B")
    return found


def budget(plan: Plan, dimensions: dict[str, BaseDistribution]) -> int:
    n_trials = plan.settings.n_trials
    assert n_trials is not None
    if n_trials < 1:
        raise ConfigError(f"hydra.sweeper.n_trials={n_trials}: must be >= 1")
    return min(n_trials, grid_size(dimensions)) if plan.settings.sampler == "grid" else n_trials


def check(plan: Plan) -> None:
    """Refuse what Optuna has not got."""
    settings = plan.settings
    if plan.rerun:
        raise ConfigError(
            "rerun=true is for grids; to search anew, give a new hydra.sweeper.study_name"
        )
    if len(plan.objectives) > 1 and settings.pruner != "none":
        raise ConfigError(
            f"hydra.sweeper.pruner={settings.pruner}: a study of several objectives"
            " cannot prune; set hydra.sweeper.pruner=none"
        )
    if settings.pruner == "wilcoxon" and len(plan.seeds) < 2:
        raise ConfigError("hydra.sweeper.pruner=wilcoxon compares seeds: give seeds=2 or more")


def first_of(distribution: BaseDistribution) -> object:
    choices = getattr(distribution, "choices", None)
    return choices[0] if choices else getattr(distribution, "low", None)


def assigned(params: dict[str, object]) -> list[str]:
    return [f"{key}={to_override(value)}" for key, value in params.items()]


def _brief(value: object) -> str:
    """A distribution or a value, short enough for a line."""
    if isinstance(value, dict) and "attributes" in value:
        inner = {k: v for k, v in value["attributes"].items() if v not in (None, False)}
        return str(inner.get("choices", inner))
    return to_override(value)


def sign(study: optuna.Study, plan: Plan, dimensions: Space, point: Config) -> None:
    """Write into the study what it searches.

    Args:
        point: the first of the space, with the overrides of the study's own arm.
    """
    signature = _signature(plan, dimensions, point)
    before = study.user_attrs.get(SIGNED, {})
    signature["fixed"] |= before.get("fixed", {})  # keys of a later version are added
    study.set_user_attr(SIGNED, signature)


def refuse_another(study: optuna.Study, plan: Plan, dimensions: Space, point: Config) -> None:
    """Refuse to go on with a study whose values would not compare with the new ones.

    Args:
        point: as in `sign`.

    Raises:
        ConfigError: if the directions, the space, the fixed values, or, once a trial has a value,
            what that value is, have changed.
    """
    advice = "use a new hydra.sweeper.study_name"
    made = [one.name.lower() for one in study.directions]
    asked = ["maximize" if one else "minimize" for one in plan.maximize]
    if made != asked:
        raise ConfigError(
            f"study {study.study_name} was made to {' and '.join(made)}, not {' and '.join(asked)}:"
            f" {advice}"
        )
    before = study.user_attrs.get(SIGNED)
    if before is None:  # its driver died before it signed
        return
    now = _signature(plan, dimensions, point)
    if "fixed" not in before:  # of an earlier version, which signed the first arm without a point
        before = before | {"fixed": before["config"]}
        now["fixed"] = dict(identity(plan.base))
    has_values = any(trial.state is TrialState.COMPLETE for trial in study.trials)
    for part, values in now.items():
        if part == "value" and not has_values:
            continue
        for key, was, is_ in _changes(before[part], values, grows=part == "fixed"):
            raise ConfigError(
                f"study {study.study_name} was made with {key} {_brief(was)}, not {_brief(is_)}:"
                f" {advice}"
            )


def _signature(plan: Plan, dimensions: Space, point: Config) -> dict[str, dict[str, Any]]:
    value = {"objective": ", ".join(map(str, plan.objectives)), "seeds": plan.seeds}
    return {
        "space": {key: json.loads(distribution_to_json(one)) for key, one in dimensions.items()},
        "value": value,
        "fixed": dict(identity(point)),
    }


def _changes(
    before: dict[str, Any], now: dict[str, Any], *, grows: bool
) -> Iterator[tuple[str, Any, Any]]:
    """Each key whose value is another, with both values.

    Args:
        grows: keys that one of the two does not know are no change: versions add some. What was done
            before there was a choice is known, and what a mapping holds is told by all of its keys.
    """
    for key in sorted(before.keys() | now.keys()):
        was, is_ = (side.get(key, _BEFORE_A_CHOICE.get(key, _NOTHING)) for side in (before, now))
        if grows and key in _MAPPINGS:  # an empty one, or none
            continue
        known = key in _BEFORE_A_CHOICE or is_among(key, _MAPPINGS) or key in before.keys() & now
        if was != is_ and (known or not grows):
            yield key, was, is_
