"""The search space of a study: a distribution for each swept key, and the points of a finite space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    RangeSweep,
    Sweep,
)
from hydra_plugins.hydra_optuna_sweeper._impl import create_optuna_distribution_from_override
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from llmdreamer.sweep.plan import to_override
from llmdreamer.utils.errors import ConfigError

SearchSpace = Mapping[str, BaseDistribution]


def search_space(swept: Mapping[str, Override]) -> dict[str, BaseDistribution]:
    """Return the distribution of each swept key, in hydra-optuna-sweeper's grammar.

    A key that adds a value keeps its `+`.

    Raises:
        ConfigError: if a range is empty, a bound is not a finite number, a value is given twice, or
            nothing is swept.
    """
    space = {}
    for override in swept.values():
        try:
            space[override.get_key_element()] = _distribution(override)
        except (ValueError, ArithmeticError, AssertionError) as error:
            reason = str(error) or "no values, range or interval"
            raise ConfigError(f"{override.input_line}: {reason}") from error
    if not space:
        raise ConfigError("hydra.sweeper.n_trials: a study needs values to choose from: key=A,B")
    return space


def _distribution(override: Override) -> BaseDistribution:
    sweep = override.value()
    assert isinstance(sweep, Sweep)
    if unknown := sweep.tags - {"log"}:
        raise ValueError(f"a study knows the tag log only, not {min(unknown)}")
    if isinstance(sweep, ChoiceSweep | RangeSweep) and sweep.shuffle:
        raise ValueError("a study draws in an order of its own: leave out shuffle(...)")
    if isinstance(sweep, IntervalSweep):
        _check_interval(sweep)
    distribution = create_optuna_distribution_from_override(override)
    if isinstance(distribution, CategoricalDistribution):
        _check_choices(distribution.choices)
    if "log" in sweep.tags and not distribution.log:
        return _logarithmic(distribution)
    assert isinstance(distribution, BaseDistribution)
    return distribution


def _check_interval(interval: IntervalSweep) -> None:
    low, high = interval.start, interval.end
    assert low is not None and high is not None
    if not math.isfinite(low) or not math.isfinite(high):
        raise ValueError("the bounds must be finite numbers")
    if not low < high:
        raise ValueError(f"the first bound, {low}, must be below the second, {high}")
    if "log" in interval.tags and low <= 0:
        raise ValueError(f"on a logarithmic scale the first bound, {low}, must be above 0")


def _check_choices(choices: Sequence[Any]) -> None:
    if any(isinstance(choice, float) and math.isnan(choice) for choice in choices):
        raise ValueError("nan cannot be chosen")
    for first, second in combinations(choices, 2):
        if first == second:  # also 1 and true, or 1 and 1.0
            names = f"{to_override(first)} and {to_override(second)}"
            raise ValueError(f"Optuna takes {names} for the same value: leave one out")


def _logarithmic(distribution: BaseDistribution) -> IntDistribution:
    # hydra-optuna-sweeper ignores the tag of a range.
    if not isinstance(distribution, IntDistribution) or distribution.step != 1:
        raise ValueError("tag(log,...) takes an interval, or a range of integers with step 1")
    if distribution.low < 1:
        raise ValueError(
            f"on a logarithmic scale the lowest value, {distribution.low}, must be >= 1"
        )
    return IntDistribution(distribution.low, distribution.high, log=True)


# --- the points of a finite space ---


def space_size(space: SearchSpace) -> int | None:
    """Return the number of points of a space; None if a parameter is continuous."""
    counts = [_count(distribution) for distribution in space.values()]
    return None if None in counts else math.prod(count for count in counts if count is not None)


def continuous_key(space: SearchSpace) -> str | None:
    """Return a key whose distribution is continuous, or None."""
    return next((key for key, kind in space.items() if _count(kind) is None), None)


def point_at(space: SearchSpace, index: int) -> dict[str, Any]:
    """Return one point of a finite space, `0 <= index < space_size(space)`. The last key varies fastest."""
    values: dict[str, Any] = {}
    for key in reversed([*space]):
        count = _count(space[key])
        assert count is not None
        index, position = divmod(index, count)
        values[key] = _value_at(space[key], position)
    return {key: values[key] for key in space}


def point_key(space: SearchSpace, params: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return a key that is equal for equal points; None if a parameter is missing."""
    if any(key not in params for key in space):
        return None
    return tuple(_position(kind, params[key]) for key, kind in space.items())


def _count(distribution: BaseDistribution) -> int | None:
    if isinstance(distribution, CategoricalDistribution):
        return len(distribution.choices)
    if isinstance(distribution, IntDistribution):
        return (distribution.high - distribution.low) // distribution.step + 1
    assert isinstance(distribution, FloatDistribution)
    if distribution.single():
        return 1
    if distribution.step is None:
        return None
    return round((distribution.high - distribution.low) / distribution.step) + 1


def _value_at(distribution: BaseDistribution, position: int) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[position]
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    if not position:
        return distribution.low
    assert distribution.step is not None
    return min(distribution.low + position * distribution.step, distribution.high)


def _position(distribution: BaseDistribution, value: Any) -> float:
    internal = distribution.to_internal_repr(value)
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return round((internal - distribution.low) / distribution.step)  # values are rounded
    return internal
