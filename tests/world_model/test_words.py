"""Texts as prediction targets: their words, in any order."""

import math

import pytest
import torch

from llmdreamer.agent.agent import Agent
from llmdreamer.types import EnvSpec
from llmdreamer.utils.text_bytes import distinct_texts
from llmdreamer.world_model.words import BINS, WordsDecoder, word_bins

torch.set_num_threads(1)


def encode(*texts, size=32):
    return torch.stack(
        [torch.tensor([*t.encode().ljust(size, b"\0")], dtype=torch.uint8) for t in texts]
    )


def test_word_bins_ignore_order_and_case():
    text, reordered, single, empty = word_bins(
        encode("go to the red ball", "The RED ball: go, to!", "go", "")
    )
    assert torch.equal(text, reordered)
    assert text.sum() == 5 and single.sum() == 1 and empty.sum() == 0
    assert (text & single).sum() == 1
    assert word_bins(encode("größe", "größe ")).sum(-1).tolist() == [1, 1]


def test_word_bins_keep_leading_dimensions():
    texts = encode("a", "b", "a", "c", "c", "a").view(2, 3, -1)
    words = word_bins(texts)
    assert words.shape == (2, 3, BINS)
    assert torch.equal(words[0, 0], words[0, 2]) and torch.equal(words[0, 0], words[1, 2])
    assert not torch.equal(words[0, 0], words[0, 1])


def test_distinct_texts_returns_each_once_with_an_index_per_element():
    texts, text_index = distinct_texts(encode("b", "a", "b", "", "a b", "b").view(3, 2, -1))
    assert texts == [b"b", b"a", b"", b"a b"]
    assert text_index.tolist() == [[0, 1], [0, 2], [3, 0]]


def test_word_bins_of_text_cut_within_a_letter_raise_no_error():
    cut = torch.tensor([[*"größe".encode()[:3]]], dtype=torch.uint8)
    assert word_bins(cut).sum() == 1


def test_words_decoder_loss_sums_the_cross_entropy_of_bins():
    torch.manual_seed(0)
    decoder = WordsDecoder(6, ["mission", "hint"], 8, 1)
    feature = torch.randn(1, 2, 6)
    texts = {
        "mission": encode("a b", "").view(1, 2, -1),
        "hint": encode("c", "a").view(1, 2, -1),
    }
    loss = decoder.loss(feature, texts)
    logits = decoder(feature)
    for step in range(2):
        present = torch.cat([word_bins(texts[key])[0, step] for key in ("mission", "hint")])
        expected = -sum(
            math.log(1 / (1 + math.exp(-x if is_present else x)))
            for x, is_present in zip(logits[0, step].tolist(), present.tolist(), strict=True)
        )
        assert loss[0, step].item() == pytest.approx(expected, rel=1e-5)


SPEC = EnvSpec({"state": (3,), "mission": (16,)}, 2, True, texts=("mission",))


def test_words_are_predicted_for_texts_that_are_read_only(compose):
    reads = ("backbone=gru", "algo.text_keys.encoder=[mission]")
    assert Agent(compose(*reads), SPEC).world_model.decoder.words.keys == ["mission"]
    assert (
        Agent(compose(*reads, "algo.text_keys.decoder=[]"), SPEC).world_model.decoder.words is None
    )
    assert Agent(compose("backbone=gru"), SPEC).world_model.decoder.words is None


def test_world_model_loss_with_predicted_texts_does_not_compile(compose):
    plain = Agent(compose("backbone=gpt2"), SPEC).world_model
    predicting = Agent(
        compose("backbone=gpt2", "algo.text_keys.decoder=[mission]"), SPEC
    ).world_model
    assert plain.loss_compiles and not predicting.loss_compiles
