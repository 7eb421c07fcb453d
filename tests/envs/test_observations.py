"""Test that images, texts and vectors become arrays of one shape and dtype."""

import logging

import numpy as np
import pytest
from gymnasium import spaces
from refusals import assert_names, refused

from llmdreamer.envs.observations import TextObservation, observation_encodings, resize
from llmdreamer.envs.returned import InterfaceError, InvalidValueError
from llmdreamer.utils.errors import ConfigError


def image_encoding(shape: tuple[int, ...], size: int = 16):
    encodings = observation_encodings(spaces.Box(0, 255, shape, np.uint8), size, 8)
    assert list(encodings) == ["image"]
    return encodings["image"]


def test_resize_to_smaller_averages_over_area():
    image = np.zeros((4, 4, 3), np.uint8)
    image[:2, :2, 0] = [[10, 20], [30, 40]]
    image[2:, 2:, 2] = 200
    small = resize(image, 2)
    assert small[..., 0].tolist() == [[25, 0], [0, 0]]
    assert small[..., 2].tolist() == [[0, 0], [0, 200]]


def test_resize_to_larger_repeats_pixels():
    image = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert resize(image, 4)[..., 0].tolist() == [
        [0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(7, 7), (33, 17), (96, 15), (97, 131), (210, 160)])
def test_resize_keeps_brightness_and_thin_lines(shape):
    assert (resize(np.full((*shape, 3), 55, np.uint8), 16) == 55).all()
    for axis, length in enumerate(shape):
        for position in (0, length // 2, length - 1):
            line = np.zeros((*shape, 1), np.uint8)
            np.moveaxis(line, axis, 0)[position] = 255
            lit = np.flatnonzero(resize(line, 16)[..., 0].max(1 - axis))
            assert len(lit) and abs(lit.mean() / 15 - position / (length - 1)) < 0.1


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
def test_resize_does_not_mix_channels(channels: int):
    image = np.zeros((32, 48, channels), np.uint8)
    image[..., channels - 1] = 77
    small = resize(image, 16)
    assert small.shape == (16, 16, channels) and small.dtype == np.uint8
    assert (small[..., channels - 1] == 77).all() and (small[..., : channels - 1] == 0).all()


def test_image_channels_may_come_first_or_be_missing():
    encoding = image_encoding((3, 32, 16))
    image = np.zeros((3, 32, 16), np.uint8)
    image[1] = 9
    assert encoding.shape == (16, 16, 3) and (encoding.encode(image)[..., 1] == 9).all()
    grey = image_encoding((16, 16))
    assert grey.encode(np.full((16, 16), 5, np.uint8)).shape == (16, 16, 1)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((64, 64, 3), 3), ((3, 64, 64), 3), ((5, 5, 20), 20), ((20, 5, 5), 20), ((3, 3, 64), 64)]
    + [((7, 7, 7), 7), ((210, 160, 3), 3), ((4, 84, 96), 4)],
)
def test_image_channel_axis_is_found_for_each_shape(shape, channels):
    assert image_encoding(shape).shape == (16, 16, channels)


def test_image_of_the_right_size_is_copied_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    result = image_encoding((16, 16, 3)).encode(image)
    assert (result == image).all() and not np.shares_memory(result, image)


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        (np.zeros((16, 16, 4), np.uint8), ["(16, 16, 4)", "(16, 16, 3)"]),
        (np.zeros((16, 16, 3)), ["float64", "uint8"]),
    ],
)
def test_image_of_wrong_shape_or_dtype_raises_interface_error(wrong: np.ndarray, parts: list[str]):
    with refused(InterfaceError, *parts):
        image_encoding((16, 16, 3)).encode(wrong)


def test_text_is_utf8_bytes_padded_with_zeros():
    encodings = observation_encodings(spaces.Text(20), 64, 6)
    assert encodings["text"].encode("go on").tolist() == [*b"go on", 0]
    assert encodings["text"].encode("").tolist() == [0] * 6
    with refused(InterfaceError, "text"):
        encodings["text"].encode(3)


def test_long_text_is_cut_between_characters_with_one_warning(caplog):
    encoding = TextObservation((4,))
    with caplog.at_level(logging.WARNING):
        assert encoding.encode("abcé").tolist() == [*b"abc", 0]  # é is two bytes
        encoding.encode("another long one")
    (record,) = caplog.records
    assert_names(record.getMessage(), "5 bytes", "env.max_text_bytes=4", "'abcé'")


def test_vector_error_distinguishes_nan_from_infinity():
    encoding = observation_encodings(spaces.Box(-1, 1, (2,)), 64, 8)["state"]
    with refused(InvalidValueError, "NaN"):
        encoding.encode(np.array([0, np.nan]))
    with refused(InvalidValueError, "infinite"):
        encoding.encode(np.array([0, np.inf]))


def test_vector_scale_multiplies_each_number():
    space = spaces.Box(-1, 1, (2,))
    encoding = observation_encodings(space, 64, 8, {"state": [10.0, 0.5]})["state"]
    assert encoding.encode(np.array([0.25, -1.0])).tolist() == [2.5, -0.5]
    two_vectors = spaces.Dict({"a": space, "b": space})
    encodings = observation_encodings(two_vectors, 64, 8, {"b": [2.0, 2.0]})
    assert encodings["a"].encode(np.ones(2)).tolist() == [1, 1]
    assert encodings["b"].encode(np.ones(2)).tolist() == [2, 2]


def test_vector_overflow_after_scaling_raises_invalid_value_error():
    encoding = observation_encodings(spaces.Box(-1, 1, (1,)), 64, 8, {"state": [1e30]})["state"]
    with refused(InvalidValueError, "infinite"):
        encoding.encode(np.array([1e30]))


@pytest.mark.parametrize(
    ("scale", "parts"),
    [
        ({"velocity": [1.0]}, ["velocity", "['state']"]),
        ({"state": [1.0, 1.0, 1.0]}, ["state", "3", "2"]),
        ({"text": [1.0]}, ["text", "['state']"]),
    ],
)
def test_vector_scale_that_does_not_fit_raises_config_error(
    scale: dict[str, list[float]], parts: list[str]
):
    space = spaces.Dict({"state": spaces.Box(-1, 1, (2,)), "text": spaces.Text(4)})
    with refused(ConfigError, *parts):
        observation_encodings(space, 64, 8, scale)


def vectors_of(space: spaces.Space, value: object) -> dict[str, list[float]]:
    arrays = observation_encodings(space, 16, 8).encode(value)
    assert all(array.dtype == np.float32 and array.ndim == 1 for array in arrays.values())
    return {key: array.tolist() for key, array in arrays.items()}


@pytest.mark.parametrize(
    "dtype", [np.float16, np.float32, np.float64, np.int8, np.int64, np.uint16, np.uint64, np.bool_]
)
@pytest.mark.parametrize("shape", [(), (4,), (2, 2), (2, 1, 2), (1, 2, 1, 2), (1, 1, 1, 1, 4)])
def test_box_of_any_shape_and_dtype_is_a_vector(dtype, shape):
    value = np.resize(np.array([0, 1, 1, 0]), shape).astype(dtype)
    assert vectors_of(spaces.Box(0, 1, shape, dtype), value) == {
        "state": value.ravel().astype(float).tolist()
    }


def test_multi_binary_of_two_dimensions_is_a_vector():
    value = np.array([[1, 0, 0], [0, 1, 1]], np.int8)
    assert vectors_of(spaces.MultiBinary([2, 3]), value) == {"state": [1, 0, 0, 0, 1, 1]}


def test_multi_discrete_is_one_hots_side_by_side():
    space = spaces.MultiDiscrete([2, 3], start=[5, -1])
    assert vectors_of(space, np.array([6, -1])) == {"state": [0, 1, 1, 0, 0]}
    with refused(InvalidValueError, "-2", "-1 to 1"):
        observation_encodings(space, 16, 8).encode([6, -2])


def test_nested_spaces_have_dotted_keys():
    space = spaces.Dict(
        a=spaces.Dict(b=spaces.Discrete(2), c=spaces.Tuple([spaces.Box(0, 9, (1,))] * 2)),
        d=spaces.Discrete(3, start=1),
    )
    value = {"a": {"b": 1, "c": (np.array([3.0]), [4.0])}, "d": np.int64(2)}
    assert vectors_of(space, value) == {
        "a.b": [0, 1], "a.c.0": [3], "a.c.1": [4], "d": [0, 1, 0]
    }  # fmt: skip


def test_tuple_has_its_indices_as_keys():
    space = spaces.Tuple([spaces.Discrete(3), spaces.MultiBinary(2)])
    assert vectors_of(space, (2, [1, 0])) == {"0": [0, 0, 1], "1": [1, 0]}


def test_two_observations_with_one_key_are_refused():
    inner = spaces.Discrete(2)
    with refused(ConfigError, "'a.b'"):
        observation_encodings(spaces.Dict({"a": spaces.Dict(b=inner), "a.b": inner}), 16, 8)


@pytest.mark.parametrize(
    ("value", "facts"),
    [
        (None, ["'a'"]),
        ({"b": 1}, ["'a'", "dict"]),
        ({"a": (1,)}, ["a.1", "1"]),
        ({"a": 3}, ["a.0"]),
    ],
)
def test_nested_observation_with_missing_part_is_refused(value, facts):
    space = spaces.Dict(a=spaces.Tuple([spaces.Discrete(2)] * 2))
    with refused(InterfaceError, *facts):
        observation_encodings(space, 16, 8).encode(value)


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.array(2), np.uint8(2)], ids=repr)
def test_discrete_observation_may_be_any_integer_value(value):
    assert vectors_of(spaces.Discrete(4), value) == {"state": [0, 0, 1, 0]}


@pytest.mark.parametrize("value", [2.7, np.inf, -np.inf, np.nan, 4, -1, 10**400], ids=repr)
def test_discrete_observation_outside_its_values_is_refused(value):
    with refused(InvalidValueError, "state", "0 to 3"):
        observation_encodings(spaces.Discrete(4), 16, 8).encode(value)


@pytest.mark.parametrize("value", ["2", None, 2j, np.array([2, 2]), [2]], ids=repr)
def test_discrete_observation_of_another_type_is_refused(value):
    with refused(InterfaceError, "state"):
        observation_encodings(spaces.Discrete(4), 16, 8).encode(value)


def test_value_outside_its_box_is_used_with_one_warning(caplog):
    encoding = observation_encodings(spaces.Box(-1, 1, (2,)), 16, 8)["state"]
    with caplog.at_level(logging.WARNING):
        encoding.encode(np.array([1.0000001, -1]))  # rounding
        assert not caplog.records
        assert encoding.encode(np.array([0.5, -3])).tolist() == [0.5, -3]
        encoding.encode(np.array([7, 0]))
    (record,) = caplog.records
    assert_names(record.getMessage(), "-3.0", "Box(-1.0, 1.0, (2,), float32)")


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 1, np.float32), (-1, 1, np.float64), (0, 255, np.float32), (0, 255, np.int32)],
)
@pytest.mark.parametrize("shape", [(16, 16, 3), (3, 16, 16), (1, 20, 30)])
def test_array_with_the_form_of_an_image_is_an_image(low, high, dtype, shape):
    encodings = observation_encodings(spaces.Box(low, high, shape, dtype), 16, 8)
    assert encodings["image"].shape == (16, 16, min(shape))
    for value, byte in (
        (low, 0),
        (high, 255),
        ((low + high) / 2, 128 if dtype != np.int32 else 127),
    ):
        assert (encodings.encode(np.full(shape, value, dtype))["image"] == byte).all()


def test_image_outside_its_bounds_is_clipped_with_a_warning(caplog):
    encoding = observation_encodings(spaces.Box(0, 1, (16, 16, 1)), 16, 8)["image"]
    with caplog.at_level(logging.WARNING):
        assert (encoding.encode(np.full((16, 16, 1), 2.0, np.float32)) == 255).all()
    assert len(caplog.records) == 1
    with refused(InvalidValueError, "finite"):
        encoding.encode(np.full((16, 16, 1), np.nan))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(0, 1, (16, 16)),
        spaces.Box(0, 1, (15, 16, 3)),
        spaces.Box(0, 1, (16, 16, 16)),
        spaces.Box(-np.inf, np.inf, (16, 16, 3)),
        spaces.Box(-5, 5, (16, 16, 3)),
    ],
    ids=str,
)
def test_array_without_the_form_of_an_image_is_a_vector(space):
    value = space.sample()
    arrays = observation_encodings(space, 16, 8).encode(value)
    assert (arrays["state"] == value.ravel()).all()


@pytest.mark.parametrize("shape", [(4, 16, 16, 3), (4, 3, 16, 16)])
def test_stacked_images_are_channels_of_one_image(shape):
    value = np.zeros(shape, np.uint8)
    value[2] = 9
    image = observation_encodings(spaces.Box(0, 255, shape, np.uint8), 16, 8).encode(value)["image"]
    assert image.shape == (16, 16, 12)
    assert (image[..., 6:9] == 9).all() and image.sum() == 9 * 3 * 256
