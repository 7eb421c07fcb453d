"""Observation keys: the network that reads each, and the errors and warnings of wrong keys."""

import logging

import pytest
import torch

from llmdreamer.backbones.text import ByteEmbedding
from llmdreamer.types import EnvSpec
from llmdreamer.utils.errors import ConfigError
from llmdreamer.world_model.observations import (
    ObservationDecoder,
    ObservationEncoder,
    check_keys,
)

torch.set_num_threads(1)
ALL = EnvSpec({"state": (3,), "image": (16, 16, 3), "mission": (20,)}, 2, True, texts=("mission",))
IMAGE = EnvSpec({"image": (64, 64, 3)}, 2, True)
KEYS = ["algo.cnn_keys.encoder=[image]", "algo.text_keys.encoder=[mission]"]


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        (
            IMAGE,
            [],
            "algo.mlp_keys.encoder=[state]: the environment has no 'state'; "
            "it has image (image: algo.cnn_keys)",
        ),
        (
            ALL,
            ["algo.mlp_keys.encoder=[state,image]"],
            "algo.mlp_keys.encoder=[state,image]: 'image' is of kind image, not vector; the environment has "
            "state (vector: algo.mlp_keys), image (image: algo.cnn_keys), "
            "mission (text: algo.text_keys)",
        ),
        (
            ALL,
            ["algo.cnn_keys.decoder=[camera]"],
            "algo.cnn_keys.decoder=[camera]: the environment has no 'camera'; it has ",
        ),
        (
            ALL,
            ["algo.text_keys.encoder=[state]"],
            "algo.text_keys.encoder=[state]: 'state' is of kind vector, not text; ",
        ),
    ],
)
def test_unknown_observation_key_error_lists_the_existing_keys(compose, spec, overrides, message):
    with pytest.raises(ConfigError) as error:
        check_keys(spec, compose(*overrides).algo)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_unread_image_or_text_warning_names_the_key_to_set(compose, caplog):
    with caplog.at_level(logging.WARNING):
        check_keys(ALL, compose().algo)
    assert [record.getMessage() for record in caplog.records] == [
        "the environment's image is not read; set algo.cnn_keys.encoder=[image] to read it",
        "the environment's text is not read; set algo.text_keys.encoder=[mission] to read it",
    ]
    caplog.clear()
    check_keys(ALL, compose(*KEYS).algo)
    assert not caplog.records


@pytest.fixture
def algo(compose):
    return compose("algo.dense_units=8", "algo.cnn_depth=2", *KEYS).algo


@pytest.fixture
def seen():
    return {
        "state": torch.randn(2, 3, 3),
        "image": torch.randint(256, (2, 3, 16, 16, 3)).to(torch.uint8),
        "mission": torch.randint(1, 256, (2, 3, 20)).to(torch.uint8),
    }


def test_each_observation_changes_only_its_own_part_of_the_embedding(algo, seen):
    encoder = ObservationEncoder(ALL, algo, ByteEmbedding())
    embeddings = {"state": slice(0, 8), "image": slice(8, 16), "mission": slice(16, 24)}
    assert encoder.width == 24
    before = encoder(seen, 2)
    for key, own in embeddings.items():
        changed = {**seen, key: seen[key].flip(0)}
        moved = (encoder(changed, 2) - before).abs().amax((0, 1)) > 0
        assert moved[own].any() and moved.sum() == moved[own].sum(), key


def test_observation_decoder_loss_sums_vectors_images_and_words(algo, seen):
    decoder = ObservationDecoder(5, ALL, algo)
    feature = torch.randn(2, 3, 5)
    decoders = (decoder.vector, decoder.image, decoder.words)
    total = sum(one.loss(feature, seen) for one in decoders)
    torch.testing.assert_close(decoder.loss(feature, seen), total)


def test_observation_decoder_without_keys_has_zero_loss(compose, seen):
    algo = compose("algo.mlp_keys.decoder=[]").algo
    loss = ObservationDecoder(5, ALL, algo).loss(torch.randn(2, 3, 5), seen)
    assert loss.shape == (2, 3) and (loss == 0).all()
