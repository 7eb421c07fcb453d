"""Test that images, texts and vectors become arrays of one shape and dtype."""

import logging

import numpy as np
import pytest
from gymnasium import spaces
from refusals import assert_names, refused

from llmdreamer.envs.observations import TextObservation, observation_encodings, resize
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
def test_image_of_wrong_shape_or_dtype_raises_value_error(wrong: np.ndarray, parts: list[str]):
    with refused(ValueError, *parts):
        image_encoding((16, 16, 3)).encode(wrong)


def test_text_is_utf8_bytes_padded_with_zeros():
    encodings = observation_encodings(spaces.Text(20), 64, 6)
    assert encodings["text"].encode("go on").tolist() == [*b"go on", 0]
    assert encodings["text"].encode("").tolist() == [0] * 6
    with refused(ValueError, "text"):
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
    with refused(ValueError, "NaN"):
        encoding.encode(np.array([0, np.nan]))
    with refused(ValueError, "infinite"):
        encoding.encode(np.array([0, np.inf]))


def test_vector_scale_multiplies_each_number():
    space = spaces.Box(-1, 1, (2,))
    encoding = observation_encodings(space, 64, 8, {"state": [10.0, 0.5]})["state"]
    assert encoding.encode(np.array([0.25, -1.0])).tolist() == [2.5, -0.5]
    two_vectors = spaces.Dict({"a": space, "b": space})
    encodings = observation_encodings(two_vectors, 64, 8, {"b": [2.0, 2.0]})
    assert encodings["a"].encode(np.ones(2)).tolist() == [1, 1]
    assert encodings["b"].encode(np.ones(2)).tolist() == [2, 2]


def test_vector_overflow_after_scaling_raises_value_error():
    encoding = observation_encodings(spaces.Box(-1, 1, (1,)), 64, 8, {"state": [1e30]})["state"]
    with refused(ValueError, "infinite"):
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
