"""The reduction of a metric's curve to the number that a sweep optimizes."""

import pytest

from llmdreamer.config import Objective, parse_objectives
from llmdreamer.utils.errors import ConfigError

CURVE = [(0, 1.0), (10, 5.0), (20, 3.0)]


@pytest.mark.parametrize(
    ("reduction", "maximize", "value"),
    [
        ("last", True, 3.0),
        ("best", True, 5.0),
        ("best", False, 1.0),
        ("auc", True, 3.5),  # (10 * (1 + 5) / 2 + 10 * (5 + 3) / 2) / 20
    ],
)
def test_curve_is_reduced_to_its_last_best_or_mean_value(reduction, maximize, value):
    assert Objective("x", reduction).value(CURVE, maximize=maximize) == value


def test_auc_weights_values_by_steps_not_by_points():
    assert Objective("x", "auc").value([(0, 0.0), (1, 0.0), (100, 0.0)], maximize=True) == 0.0
    assert Objective("x", "auc").value([(0, 2.0), (30, 2.0), (40, 4.0)], maximize=True) == 2.25


@pytest.mark.parametrize("reduction", ["last", "best", "auc"])
def test_single_point_is_reduced_to_its_value(reduction):
    assert Objective("x", reduction).value([(5, 7.0)], maximize=True) == 7.0


def test_objectives_are_parsed_with_their_reductions():
    assert parse_objectives("eval/return") == [Objective("eval/return", "last")]
    assert parse_objectives("eval/return:auc, replay/updates") == [
        Objective("eval/return", "auc"),
        Objective("replay/updates", "last"),
    ]
    assert [str(objective) for objective in parse_objectives("a:best,b:last")] == ["a:best", "b"]


@pytest.mark.parametrize("text", ["", "a,,b", "a:mean", "a,a"])
def test_invalid_objective_is_refused(text):
    with pytest.raises(ConfigError, match="objective="):
        parse_objectives(text)


def test_misspelled_reduction_is_refused_with_the_closest_one():
    with pytest.raises(ConfigError, match="'bst'.*'best'"):
        parse_objectives("eval/return:bst")
