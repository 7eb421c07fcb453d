"""Images, texts and vectors become arrays of one shape."""

import logging

import numpy as np
import pytest
from gymnasium import spaces
from refusals import assert_names, refused

from llmdreamer.envs.observations import Words, observation_keys, resize
from llmdreamer.utils.errors import ConfigError


def image_of(shape: tuple[int, ...], size: int = 16):
    keys = observation_keys(spaces.Box(0, 255, shape, np.uint8), size, 8)
    assert list(keys) == ["image"]
    return keys["image"]


def test_a_smaller_picture_is_the_mean_over_each_new_pixels_area():
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[:2, :2, 0] = [[10, 20], [30, 40]]
    picture[2:, 2:, 2] = 200
    small = resize(picture, 2)
    assert small[..., 0].tolist() == [[25, 0], [0, 0]]
    assert small[..., 2].tolist() == [[0, 0], [0, 200]]


def test_a_larger_picture_repeats_its_pixels():
    picture = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    assert resize(picture, 4)[..., 0].tolist() == [
        [0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 3, 3], [2, 2, 3, 3]
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(7, 7), (33, 17), (96, 15), (97, 131), (210, 160)])
def test_a_picture_of_any_size_keeps_its_level_and_its_thin_lines(shape):
    assert (resize(np.full((*shape, 3), 55, np.uint8), 16) == 55).all()
    for axis, length in enumerate(shape):
        for place in (0, length // 2, length - 1):
            line = np.zeros((*shape, 1), np.uint8)
            np.moveaxis(line, axis, 0)[place] = 255
            seen = np.flatnonzero(resize(line, 16)[..., 0].max(1 - axis))
            assert len(seen) and abs(seen.mean() / 15 - place / (length - 1)) < 0.1


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 12])
def test_channels_do_not_mix(channels: int):
    picture = np.zeros((32, 48, channels), np.uint8)
    picture[..., channels - 1] = 77
    small = resize(picture, 16)
    assert small.shape == (16, 16, channels) and small.dtype == np.uint8
    assert (small[..., channels - 1] == 77).all() and (small[..., : channels - 1] == 0).all()


def test_channels_may_come_first_or_not_at_all():
    first = image_of((3, 32, 16))
    picture = np.zeros((3, 32, 16), np.uint8)
    picture[1] = 9
    assert first.shape == (16, 16, 3) and (first.encode(picture)[..., 1] == 9).all()
    grey = image_of((16, 16))
    assert grey.encode(np.full((16, 16), 5, np.uint8)).shape == (16, 16, 1)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((64, 64, 3), 3), ((3, 64, 64), 3), ((5, 5, 20), 20), ((20, 5, 5), 20), ((3, 3, 64), 64)]
    + [((7, 7, 7), 7), ((210, 160, 3), 3), ((4, 84, 96), 4)],
)
def test_channels_are_what_stands_beside_a_square_or_the_shorter_end(shape, channels):
    assert image_of(shape).shape == (16, 16, channels)


def test_a_picture_of_the_right_size_is_kept_and_copied():
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    shown = image_of((16, 16, 3)).encode(picture)
    assert (shown == picture).all() and not np.shares_memory(shown, picture)


@pytest.mark.parametrize(
    ("wrong", "parts"),
    [
        (np.zeros((16, 16, 4), np.uint8), ["(16, 16, 4)", "(16, 16, 3)"]),
        (np.zeros((16, 16, 3)), ["float64", "uint8"]),
    ],
)
def test_a_picture_of_another_shape_or_type_is_an_error(wrong: np.ndarray, parts: list[str]):
    with refused(ValueError, *parts):
        image_of((16, 16, 3)).encode(wrong)


def test_a_text_is_its_bytes_and_zeros():
    keys = observation_keys(spaces.Text(20), 64, 6)
    assert keys["text"].encode("go on").tolist() == [*b"go on", 0]
    assert keys["text"].encode("").tolist() == [0] * 6
    with refused(ValueError, "text"):
        keys["text"].encode(3)


def test_a_long_text_is_cut_between_characters_with_one_warning(caplog):
    words = Words((4,))
    with caplog.at_level(logging.WARNING):
        assert words.encode("abcé").tolist() == [*b"abc", 0]  # é is two bytes
        words.encode("another long one")
    (record,) = caplog.records
    assert_names(record.getMessage(), "5 bytes", "env.max_text_bytes=4", "'abcé'")


def test_a_vector_tells_nan_from_infinity():
    part = observation_keys(spaces.Box(-1, 1, (2,)), 64, 8)["state"]
    with refused(ValueError, "NaN"):
        part.encode(np.array([0, np.nan]))
    with refused(ValueError, "infinite"):
        part.encode(np.array([0, np.inf]))


def test_a_vector_is_scaled_number_by_number():
    space = spaces.Box(-1, 1, (2,))
    part = observation_keys(space, 64, 8, {"state": [10.0, 0.5]})["state"]
    assert part.encode(np.array([0.25, -1.0])).tolist() == [2.5, -0.5]
    both = spaces.Dict({"a": space, "b": space})
    keys = observation_keys(both, 64, 8, {"b": [2.0, 2.0]})
    assert keys["a"].encode(np.ones(2)).tolist() == [1, 1]
    assert keys["b"].encode(np.ones(2)).tolist() == [2, 2]


def test_a_vector_that_overflows_when_scaled_is_not_finite():
    part = observation_keys(spaces.Box(-1, 1, (1,)), 64, 8, {"state": [1e30]})["state"]
    with refused(ValueError, "infinite"):
        part.encode(np.array([1e30]))


@pytest.mark.parametrize(
    ("scale", "parts"),
    [
        ({"velocity": [1.0]}, ["velocity", "['state']"]),
        ({"state": [1.0, 1.0, 1.0]}, ["state", "3", "2"]),
        ({"text": [1.0]}, ["text", "['state']"]),
    ],
)
def test_a_scale_for_what_is_not_there_is_refused(scale: dict[str, list[float]], parts: list[str]):
    space = spaces.Dict({"state": spaces.Box(-1, 1, (2,)), "text": spaces.Text(4)})
    with refused(ConfigError, *parts):
        observation_keys(space, 64, 8, scale)
