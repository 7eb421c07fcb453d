"""Text encoder and prompt embeddings: words and their order count, and gradients reach all that trains."""

import logging

import pytest
import torch
from refusals import assert_names, refused

from llmdreamer.backbones import make_backbone, text
from llmdreamer.backbones.text import (
    ByteEmbedding,
    TextEncoder,
    TokenEmbedding,
    make_text_embedding,
)
from llmdreamer.utils.errors import ConfigError

torch.set_num_threads(1)
close = torch.testing.assert_close
WORDS = ["go", "to", "the", "red", "blue", "ball", "box"]
GO = "go to the red ball"


def text_bytes(*texts: str, width: int = 40) -> torch.Tensor:
    padded = [text.encode().ljust(width, b"\0") for text in texts]
    return torch.tensor([list(encoded) for encoded in padded], dtype=torch.uint8)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A saved GPT-2 with seven words and its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=8, n_positions=64, n_embd=32, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(path)
    words = models.WordLevel({w: i for i, w in enumerate([*WORDS, "?"])}, unk_token="?")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(path)
    return path


def pretrained(compose, path):
    keys = ["algo.text_keys.encoder=[mission]", "algo.mlp_keys.encoder=[]"]
    return compose("backbone=gpt2", "pretrained=true", f"backbone.path={path}", *keys)


def text_embedding(config):
    """Return the embedding as the agent builds it: with the backbone's words if it is pretrained."""
    return make_text_embedding(config, make_backbone(config).vocabulary)


@pytest.fixture(params=["bytes", "tokens"])
def encoder(request, compose, checkpoint):
    config = compose() if request.param == "bytes" else pretrained(compose, checkpoint)
    torch.manual_seed(0)
    return TextEncoder(text_embedding(config), ["mission"], 16)


def encode(encoder: TextEncoder, *texts: str) -> torch.Tensor:
    return encoder({"mission": text_bytes(*texts)}, 1)


def test_encoder_distinguishes_words_and_order(encoder):
    vectors = encode(encoder, GO, "go to the blue ball", "ball red the to go", "go to the ball red")
    distance = torch.cdist(vectors, vectors) + 9 * torch.eye(4)
    assert distance.min() > 1e-3


def test_encoder_text_alone_equals_text_in_batch(encoder):
    alone = encode(encoder, GO)
    batch = encode(encoder, "red", GO, "", GO, "go to the red ball to the blue box")
    close(batch[1], alone[0])
    close(batch[3], alone[0])
    assert batch.isfinite().all()


def test_encoder_keeps_leading_dimensions(encoder):
    observations = {"mission": text_bytes(GO, "red", "box", "to", "the", GO).unflatten(0, (2, 3))}
    vectors = encoder(observations, 2)
    assert vectors.shape == (2, 3, 16)
    close(vectors[0, 0], vectors[1, 2])


def test_gradient_reaches_trained_weights_but_not_word_embeddings(encoder):
    encode(encoder, GO, "blue box").square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in encoder.parameters())
    if isinstance(encoder.text_embedding, TokenEmbedding):
        assert (
            not list(encoder.text_embedding.parameters())
            and not encoder.text_embedding.weight.requires_grad
        )
        assert not [name for name in encoder.state_dict() if "text_embedding" in name]
    else:
        assert encoder.text_embedding.embedding.weight.grad is not None


def test_token_embedding_uses_tokenizer_and_model_weights(compose, checkpoint):
    from transformers import GPT2Model

    tokens = text_embedding(pretrained(compose, checkpoint))
    assert isinstance(tokens, TokenEmbedding)
    assert tokens.ids(GO.encode()) == [0, 1, 2, 3, 5]
    weight = GPT2Model.from_pretrained(checkpoint).wte.weight.detach()
    close(tokens(GO.encode()), weight[[0, 1, 2, 3, 5]] / weight.square().mean().sqrt())


def test_equal_texts_are_tokenized_once():
    class Counting:
        calls = 0

        def encode(self, text, *, add_special_tokens):
            self.calls += 1
            return [1]

    tokenizer = Counting()
    encoder = TextEncoder(TokenEmbedding(tokenizer, torch.randn(3, 4)), ["mission"], 8)
    for _ in range(3):
        encode(encoder, GO, GO, "red")
    assert tokenizer.calls == 2


def test_checkpoint_without_tokenizer_warns_and_reads_bytes(compose, tmp_path, checkpoint, caplog):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((checkpoint / name).read_bytes())
    with caplog.at_level(logging.WARNING, logger=text.__name__):
        embedding = text_embedding(pretrained(compose, tmp_path))
    assert isinstance(embedding, ByteEmbedding)
    assert_names(caplog.text, tmp_path, "tokenizer", "WARNING")


def test_damaged_tokenizer_is_refused(compose, tmp_path, checkpoint):
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").unlink(missing_ok=True)
    with refused(ConfigError, tmp_path, "tokenizer"):
        text_embedding(pretrained(compose, tmp_path))


def test_hub_model_without_cached_tokenizer_is_refused(compose):
    with refused(ConfigError, "algo.text_keys", "tokenizer", "nobody/nothing"):
        make_text_embedding(pretrained(compose, "nobody/nothing"), torch.ones(8, 2))


def test_vocabulary_is_kept_only_for_text_keys(compose, checkpoint):
    path = f"backbone.path={checkpoint}"
    assert make_backbone(compose("pretrained=true", path)).vocabulary is None
    backbone = make_backbone(pretrained(compose, checkpoint))
    assert backbone.vocabulary.shape == (8, 32)
    assert not [name for name in backbone.state_dict() if "vocabulary" in name or "wte" in name]
