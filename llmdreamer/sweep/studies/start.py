"""Start points: parameters that a study runs before its sampler draws any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from llmdreamer.config import GROUPS
from llmdreamer.sweep.plan import Plan, to_override
from llmdreamer.sweep.studies.distributions import SearchSpace, point_key
from llmdreamer.sweep.studies.search_space import to_overrides
from llmdreamer.utils.errors import ConfigError, did_you_mean

_SETTING = "hydra.sweeper.start"


def start_points(plan: Plan, space: SearchSpace, arm: Sequence[str]) -> list[dict[str, Any]]:
    """Return the points of `hydra.sweeper.start`, each with a value for every key of the space.

    A key that a point leaves out has the configuration's value, so `{}` is the configuration itself.

    Args:
        arm: the overrides of the study's arm.

    Raises:
        ConfigError: if a key is not swept, a value is not in the space, a point is given twice, or the
            configuration of a point is invalid.
    """
    points: list[dict[str, Any]] = []
    for given in plan.settings.start:
        point = _point(plan, space, given, arm)
        if point_key(space, point) in [point_key(space, other) for other in points]:
            raise ConfigError(f"{_SETTING}: {' '.join(to_overrides(point))} is given twice")
        try:
            plan.compose([*plan.fixed, *to_overrides(point), *arm])
        except ConfigError as error:
            raise ConfigError(f"{_SETTING}: {error}") from error
        points.append(point)
    return points


def _point(
    plan: Plan, space: SearchSpace, given: Mapping[str, Any], arm: Sequence[str]
) -> dict[str, Any]:
    point = {}
    for key, value in given.items():
        if key not in space:
            near = did_you_mean(key, space)
            raise ConfigError(
                f"{_SETTING}: {key} is not swept; choose from {', '.join(space)}{near}"
            )
        point[key] = _in_space(key, space[key], value, f"{key}={_text(value)}")
    left_out = [key for key in space if key not in point]
    if left_out:
        overrides = [*plan.fixed, *to_overrides(point), *arm]
        config = plan.loader.load_sweep_config(plan.master, overrides)
        for key in left_out:
            value = _configured(config, key)
            text = f"the configuration's {key}={_text(value)}"
            point[key] = _in_space(key, space[key], value, text)
    return {key: point[key] for key in space}


def _configured(config: Any, key: str) -> Any:
    """Return the value of a key in a composed configuration, or the option of a group."""
    if key in GROUPS:
        return config.hydra.runtime.choices.get(key)
    try:
        value = OmegaConf.select(config, key, throw_on_missing=True)
    except OmegaConfBaseException:
        value = None
    if value is None and OmegaConf.select(config, key.rpartition(".")[0] or key) is None:
        raise ConfigError(f"{_SETTING}: {key} has no value in the configuration: give one")
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _in_space(key: str, distribution: BaseDistribution, value: Any, text: str) -> Any:
    """Return a value as the distribution has it.

    Raises:
        ConfigError: if the distribution does not contain it.
    """
    if isinstance(distribution, CategoricalDistribution):
        for choice in distribution.choices:
            parsed = OverridesParser.create().parse_override(f"x={to_override(choice)}").value()
            if parsed == value and isinstance(parsed, bool) == isinstance(value, bool):
                return choice
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        is_whole = not isinstance(distribution, IntDistribution) or value == int(value)
        if is_whole and distribution._contains(distribution.to_internal_repr(value)):
            return distribution.to_external_repr(distribution.to_internal_repr(value))
    raise ConfigError(f"{_SETTING}: {text} is not in the search space, {_describe(distribution)}")


def _describe(distribution: BaseDistribution) -> str:
    """Write a distribution in short, as values or as bounds."""
    if isinstance(distribution, CategoricalDistribution):
        return ",".join(map(to_override, distribution.choices))
    return f"{distribution.low} to {distribution.high}"  # type: ignore[attr-defined]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_text, value))}]"
    return to_override(value)
