"""Test that returned values are read as numbers and flags, or refused with their description."""

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from refusals import refused

from llmdreamer.envs.returned import (
    InterfaceError,
    describe_value,
    read_image,
    read_numbers,
    read_reset,
    read_reward,
    read_step,
)


class BadRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __str__ = __repr__


@pytest.mark.parametrize(
    "value",
    [1, 1.0, True, np.float16(1), np.array([1.0]), np.array(1), np.array([[1]], object), [1.0]]
    + [Fraction(2, 2), torch.tensor(1.0), torch.tensor([1.0])],
    ids=repr,
)
def test_reward_may_be_any_single_real_number(value):
    assert read_reward(value) == 1.0


@pytest.mark.parametrize(("value", "sign"), [(10**400, 1), (-(10**400), -1)])
def test_reward_too_large_for_a_float_is_infinite(value: int, sign: int):
    assert read_reward(value) == sign * np.inf
    assert read_reward(np.array([value], object)) == sign * np.inf


@pytest.mark.parametrize(
    "value",
    [None, "x", "1.0", b"1", 1j, np.array([1, 2]), np.array([]), np.array([1j]), {}, [[1], [1, 2]]]
    + [
        Decimal("NaN"),
        BadRepr(),
        object(),
        np.array([None]),
        torch.ones(1, requires_grad=True) * 1j,
    ],
    ids=lambda value: type(value).__name__,
)
def test_reward_that_is_not_one_real_number_is_refused(value):
    with refused(InterfaceError, "reward"):
        read_reward(value)


@pytest.mark.parametrize("value", [True, np.True_, 1, 1.0, np.array([True]), torch.tensor(True)])
def test_flag_may_be_any_form_of_true(value):
    step = read_step((None, 0.0, value, not value, {}))
    assert (step.terminated, step.truncated) == (True, False)


@pytest.mark.parametrize(
    "value",
    ["False", "", None, np.array([True, False]), 2, np.nan, 0.5, [], {}, BadRepr()],
    ids=lambda value: f"{type(value).__name__}",
)
@pytest.mark.parametrize("name", ["terminated", "truncated"])
def test_flag_that_is_not_true_or_false_is_refused(value, name):
    flags = {"terminated": False, "truncated": False} | {name: value}
    with refused(InterfaceError, name, "True or False"):
        read_step((None, 0.0, *flags.values(), {}))


@pytest.mark.parametrize("count", [0, 3, 4, 6])
def test_step_with_another_number_of_values_is_refused(count: int):
    with refused(InterfaceError, f"{count} values", "terminated, truncated"):
        read_step((0.0,) * count)


def test_four_step_values_name_the_old_interface():
    with refused(InterfaceError, "before Gymnasium", "done"):
        read_step((np.zeros(2), 0.0, False, {}))


@pytest.mark.parametrize("result", [None, 3, "abcde", np.zeros(5), {}, BadRepr()])
def test_step_that_returns_no_tuple_is_refused(result):
    with refused(InterfaceError, "step returned", "not 5"):
        read_step(result)


@pytest.mark.parametrize(
    "result", [None, np.zeros(2), (np.zeros(2),), (np.zeros(2), None), (1, 2, 3), [1, {}]]
)
def test_reset_without_observation_and_info_is_refused(result):
    with refused(InterfaceError, "reset returned", "(observation, info)"):
        read_reset(result)


@pytest.mark.parametrize(
    ("value", "facts"),
    [
        (np.zeros(2, complex), ["complex128", "real numbers"]),
        ("ab", ["'ab'", "real numbers"]),
        (None, ["None", "real numbers"]),
        ([None, 1.0], ["real numbers"]),
        ([[1], [1, 2]], ["numbers"]),
        (np.zeros(3), ["(3,)", "(2,)"]),
        (BadRepr(), ["BadRepr"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_observation_of_wrong_type_or_shape_is_refused(value, facts):
    with refused(InterfaceError, "observation", *facts):
        read_numbers(value, (2,))


def test_observation_of_huge_integers_is_infinite():
    assert read_numbers([10**400, -1], (2,)).tolist() == [np.inf, -1]


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_image_of_any_usual_form_becomes_rgb(shape):
    image = read_image(np.full(shape, 7, np.uint8))
    assert image.shape == (4, 5, 3) and (image == 7).all() and image.flags.c_contiguous


@pytest.mark.parametrize(
    "value",
    [
        None,
        "+---+",
        [np.zeros((4, 4, 3), np.uint8)],
        np.zeros((4, 4, 3)),
        np.zeros((4, 4, 2), np.uint8),
    ]
    + [np.zeros(0, np.uint8), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((0, 4, 3), np.uint8)],
    ids=lambda value: type(value).__name__,
)
def test_image_of_another_type_or_shape_is_refused(value):
    with refused(InterfaceError, "render returned"):
        read_image(value)


def test_description_is_one_short_line():
    for value in ("a\nb", "x" * 10_000, BadRepr(), list(range(10_000)), np.zeros((3, 3))):
        text = describe_value(value)
        assert text and "\n" not in text and len(text) < 200
