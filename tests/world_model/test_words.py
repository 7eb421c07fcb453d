"""What a text is as something to predict: its words, in any order."""

import math

import pytest
import torch

from llmdreamer.agent.agent import Agent
from llmdreamer.types import EnvSpec
from llmdreamer.utils.text_bytes import distinct_texts
from llmdreamer.world_model.words import BINS, WordsDecoder, words_of

torch.set_num_threads(1)


def rows(*texts, size=32):
    return torch.stack(
        [torch.tensor([*t.encode().ljust(size, b"\0")], dtype=torch.uint8) for t in texts]
    )


def test_a_text_is_its_words_in_any_order_and_case():
    one, other, more, none = words_of(rows("go to the red ball", "The RED ball: go, to!", "go", ""))
    assert torch.equal(one, other)
    assert one.sum() == 5 and more.sum() == 1 and none.sum() == 0
    assert (one & more).sum() == 1
    assert words_of(rows("größe", "größe ")).sum(-1).tolist() == [1, 1]


def test_shapes_before_the_bytes_are_kept():
    texts = rows("a", "b", "a", "c", "c", "a").view(2, 3, -1)
    words = words_of(texts)
    assert words.shape == (2, 3, BINS)
    assert torch.equal(words[0, 0], words[0, 2]) and torch.equal(words[0, 0], words[1, 2])
    assert not torch.equal(words[0, 0], words[0, 1])


def test_each_text_comes_once_and_every_row_knows_its_own():
    texts, which = distinct_texts(rows("b", "a", "b", "", "a b", "b").view(3, 2, -1))
    assert texts == [b"b", b"a", b"", b"a b"]
    assert which.tolist() == [[0, 1], [0, 2], [3, 0]]


def test_a_text_cut_within_a_letter_is_no_error():
    cut = torch.tensor([[*"größe".encode()[:3]]], dtype=torch.uint8)
    assert words_of(cut).sum() == 1


def test_the_loss_is_the_cross_entropy_of_each_word_summed():
    torch.manual_seed(0)
    decoder = WordsDecoder(6, ["mission", "hint"], 8, 1)
    feature = torch.randn(1, 2, 6)
    texts = {
        "mission": rows("a b", "").view(1, 2, -1),
        "hint": rows("c", "a").view(1, 2, -1),
    }
    found = decoder.loss(feature, texts)
    logits = decoder(feature)
    for step in range(2):
        there = torch.cat([words_of(texts[key])[0, step] for key in ("mission", "hint")])
        wanted = -sum(
            math.log(1 / (1 + math.exp(-x if is_there else x)))
            for x, is_there in zip(logits[0, step].tolist(), there.tolist(), strict=True)
        )
        assert found[0, step].item() == pytest.approx(wanted, rel=1e-5)


SPEC = EnvSpec({"state": (3,), "mission": (16,)}, 2, True, texts=("mission",))


def test_words_are_predicted_of_what_is_read_and_of_nothing_else(compose):
    reads = ("backbone=gru", "algo.text_keys.encoder=[mission]")
    assert Agent(compose(*reads), SPEC).world_model.decoder.words.keys == ["mission"]
    assert (
        Agent(compose(*reads, "algo.text_keys.decoder=[]"), SPEC).world_model.decoder.words is None
    )
    assert Agent(compose("backbone=gru"), SPEC).world_model.decoder.words is None


def test_world_model_loss_with_predicted_texts_does_not_compile(compose):
    plain = Agent(compose("backbone=gpt2"), SPEC).world_model
    only = Agent(compose("backbone=gpt2", "algo.text_keys.decoder=[mission]"), SPEC).world_model
    assert plain.loss_compiles and not only.loss_compiles
