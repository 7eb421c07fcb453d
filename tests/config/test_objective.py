"""How a curve becomes the number that is optimised."""

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
def test_a_curve_is_reduced_to_its_last_its_best_or_its_mean_height(reduction, maximize, value):
    assert Objective("x", reduction).value(CURVE, maximize=maximize) == value


def test_the_area_counts_steps_not_points():
    assert Objective("x", "auc").value([(0, 0.0), (1, 0.0), (100, 0.0)], maximize=True) == 0.0
    assert Objective("x", "auc").value([(0, 2.0), (30, 2.0), (40, 4.0)], maximize=True) == 2.25


@pytest.mark.parametrize("reduction", ["last", "best", "auc"])
def test_a_single_point_is_its_value(reduction):
    assert Objective("x", reduction).value([(5, 7.0)], maximize=True) == 7.0


def test_objectives_are_read_as_typed():
    assert parse_objectives("eval/return") == [Objective("eval/return", "last")]
    assert parse_objectives("eval/return:auc, replay/updates") == [
        Objective("eval/return", "auc"),
        Objective("replay/updates", "last"),
    ]
    assert [str(one) for one in parse_objectives("a:best,b:last")] == ["a:best", "b"]


@pytest.mark.parametrize("text", ["", "a,,b", "a:mean", "a,a"])
def test_a_senseless_objective_is_refused(text):
    with pytest.raises(ConfigError, match="objective="):
        parse_objectives(text)


def test_the_near_reduction_is_offered():
    with pytest.raises(ConfigError, match="choose from last, best, auc; did you mean 'best'"):
        parse_objectives("eval/return:bst")
