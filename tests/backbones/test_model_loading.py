"""Pretrained weights: what is loaded computes what transformers computes, or one line says why not."""

from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    OPTConfig,
    Qwen3Config,
)

from llmdreamer.backbones import make_backbone
from llmdreamer.backbones.model_loading import embedding_rms
from llmdreamer.utils.errors import ConfigError

torch.set_num_threads(1)
BYTES = Path(__file__).parents[1] / "data" / "mamba-128x4-bytes"
WIDE = {"vocab_size": 50, "num_hidden_layers": 2, "bos_token_id": None, "eos_token_id": None}
ROTARY = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL = {
    "gpt2": GPT2Config(**WIDE, n_positions=64, n_embd=32, n_head=2),
    "smollm2": LlamaConfig(**WIDE, **ROTARY, intermediate_size=64),
    "qwen3": Qwen3Config(**WIDE, **ROTARY, intermediate_size=64, head_dim=12),
    "mamba": MambaConfig(**WIDE, hidden_size=32, pad_token_id=None),
    "mamba2": Mamba2Config(
        **WIDE, hidden_size=32, num_heads=4, head_dim=16, n_groups=1, pad_token_id=None
    ),
    "hf": OPTConfig(
        **WIDE,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_attention_heads=2,
        pad_token_id=None,
    ),
}


def encode(backbone, tokens):
    return backbone.eval().observe(tokens, torch.zeros(tokens.shape[:2], dtype=torch.bool))[0]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A model with a language head of each family, as `save_pretrained` leaves it."""
    saved = {}
    for name, config in SMALL.items():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config).eval()
        path = tmp_path_factory.mktemp(name)
        model.save_pretrained(path)
        saved[name] = model, path
    return saved


@torch.no_grad()
@pytest.mark.parametrize("name", SMALL)
def test_a_checkpoint_brings_its_own_shape_and_computes_what_transformers_computes(
    name, checkpoints, compose
):
    model, path = checkpoints[name]
    backbone = make_backbone(
        compose(f"backbone={name}", "pretrained=true", f"backbone.path={path}")
    )
    words = torch.randint(50, (2, 9))
    # All but OPT's hidden states enter the head as they are.
    expected = model.base_model(words).last_hidden_state
    tokens = model.get_input_embeddings()(words)
    assert backbone.width == model.config.hidden_size
    torch.testing.assert_close(encode(backbone, tokens), expected, rtol=1e-4, atol=2e-5)
    # What a checkpoint was trained on has the size that our tokens are given.
    rms = model.get_input_embeddings().weight.square().mean().sqrt().item()
    assert backbone.input_rms == pytest.approx(rms, rel=1e-6)
    assert rms != pytest.approx(1.0, rel=0.1)


@torch.no_grad()
def test_the_bundled_mamba_knows_its_language_through_our_scan(compose):
    backbone = make_backbone(compose("backbone=mamba", "pretrained=true", f"backbone.path={BYTES}"))
    table = AutoModelForCausalLM.from_pretrained(BYTES).get_input_embeddings().weight
    text = b"The first of these is that the house was built by the river, and the second is that "
    spelled = torch.tensor(list(text))
    logits = encode(backbone, table[spelled].unsqueeze(0))[0] @ table.T
    loss = torch.nn.functional.cross_entropy(logits[:-1], spelled[1:]).item()
    assert loss < 2.2, "a unigram of bytes has 3.4 nats, a bigram 2.7"


def test_look_ups_that_scale_count_with_their_scale():
    class Scaled(torch.nn.Embedding):
        def forward(self, words):
            return 3 * super().forward(words)

    table = Scaled(2, 2)
    table.weight.data = torch.tensor([[1.0, 1.0], [7.0, 7.0]])
    assert embedding_rms(table) == pytest.approx(15.0)  # 3 * sqrt((1 + 49) / 2)


def test_a_checkpoint_of_any_causal_model_may_go_without_its_type(checkpoints, compose):
    path = checkpoints["smollm2"][1]
    assert make_backbone(compose("backbone=hf", "pretrained=true", f"backbone.path={path}"))
    wrong = ["backbone=hf", "backbone.model_type=qwen3", "pretrained=true"]
    with refused(ConfigError, path, "llama", "qwen3"):
        make_backbone(compose(*wrong, f"backbone.path={path}"))


@pytest.fixture
def saved(checkpoints):
    return checkpoints["gpt2"]


def test_a_checkpoint_is_loaded_without_dropout(saved, compose):
    backbone = make_backbone(compose("pretrained=true", f"backbone.path={saved[1]}"))
    dropouts = [m.p for m in backbone.modules() if isinstance(m, torch.nn.Dropout)]
    assert set(dropouts) == {0.0}


@pytest.mark.parametrize(
    ("source", "part"),
    [("/no/such/directory", "directory"), ("nobody/no-such-model", "hub")],
)
def test_a_checkpoint_that_is_not_there_is_one_line(source, part, compose):
    with refused(ConfigError, source, part, "backbone.path"):
        make_backbone(compose("pretrained=true", f"backbone.path={source}"))


def test_a_checkpoint_of_another_architecture_is_one_line(tmp_path, compose):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with refused(ConfigError, tmp_path, "bert", "gpt2"):
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))


def test_a_directory_without_a_checkpoint_is_one_line(tmp_path, compose):
    with refused(ConfigError, f"backbone.path={tmp_path}"):
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))


def test_a_truncated_checkpoint_is_one_line(saved, tmp_path, compose):
    saved[0].save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with refused(ConfigError, f"backbone.path={tmp_path}"):
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))


@pytest.mark.parametrize(
    ("part", "lacking"), [("transformer.h.1.mlp.", 4), ("transformer.", 28)], ids=["some", "all"]
)
def test_a_checkpoint_that_lacks_weights_is_one_line(saved, tmp_path, compose, part, lacking):
    # transformers would draw them at random, and the run would be called pretrained.
    saved[0].save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    renamed = {key.replace(part, "other."): value for key, value in load_file(file).items()}
    save_file(renamed, file, {"format": "pt"})
    with refused(ConfigError, tmp_path, f" {lacking} of", "weights", "h."):
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))


def test_size_xs_has_no_published_checkpoint(compose):
    with refused(ConfigError, "pretrained=true", "size XS", "backbone.path"):
        make_backbone(compose("pretrained=true"))
