"""What a study searches: its space, its budget, and whether an old study searched the same."""

from __future__ import annotations

import json

import optuna
from hydra.core.override_parser.types import Override
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import TrialState

from llmdreamer.errors import ConfigError
from llmdreamer.sweep.cells import identity
from llmdreamer.sweep.plan import Plan, spelled
from llmdreamer.sweep.samplers import Space, grid_size
from llmdreamer.sweep.tried import SIGNED


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
    return [f"{key}={spelled(value)}" for key, value in params.items()]


def _brief(value: object) -> str:
    """A distribution or a value, short enough for a line."""
    if isinstance(value, dict) and "attributes" in value:
        inner = {k: v for k, v in value["attributes"].items() if v not in (None, False)}
        return str(inner.get("choices", inner))
    return "nothing" if value is None else str(value)


def sign(study: optuna.Study, plan: Plan, dimensions: Space) -> None:
    """Write into the study what it searches."""
    signature = _signature(plan, dimensions)
    before = study.user_attrs.get(SIGNED)
    if before is not None:
        signature["config"] = before["config"]
    study.set_user_attr(SIGNED, signature)


def refuse_another(study: optuna.Study, plan: Plan, dimensions: Space) -> None:
    """Refuse to go on with a study whose values would not compare with the new ones.

    Raises:
        ConfigError: if the directions, the space, the fixed values, or, once a trial has a value,
            what that value is, have changed.
    """
    advice = "use a new hydra.sweeper.study_name"
    made = [one.name.lower() for one in study.directions]
    asked = ["maximize" if one else "minimize" for one in plan.maximize]
    if made != asked:
        raise ConfigError(
            f"study {plan.name} was made to {' and '.join(made)}, not {' and '.join(asked)}: {advice}"
        )
    before = study.user_attrs.get(SIGNED)
    if before is None:  # its driver died before it signed
        return
    has_values = any(trial.state is TrialState.COMPLETE for trial in study.trials)
    for part, values in _signature(plan, dimensions).items():
        old = before[part]
        if part == "value" and not has_values:
            continue
        # Keys that later versions add to the configuration are no change of the study.
        for key in sorted(old.keys() & values.keys() if part == "config" else old.keys() | values):
            if old.get(key) != values.get(key):
                was, is_ = _brief(old.get(key)), _brief(values.get(key))
                raise ConfigError(
                    f"study {plan.name} was made with {key} {was}, not {is_}: {advice}"
                )


def _signature(plan: Plan, dimensions: Space) -> dict[str, dict[str, object]]:
    value = {"objective": ", ".join(map(str, plan.objectives)), "seeds": plan.seeds}
    return {
        "space": {key: json.loads(distribution_to_json(one)) for key, one in dimensions.items()},
        "value": value,
        "config": dict(identity(plan.base)),
    }
