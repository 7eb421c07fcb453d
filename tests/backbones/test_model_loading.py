"""Pretrained models compute what transformers computes, or are refused with a one-line error."""

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
from llmdreamer.backbones.model_loading import embedding_rms, model_from_scratch
from llmdreamer.utils.errors import ConfigError

torch.set_num_threads(1)
BYTE_MAMBA = Path(__file__).parents[1] / "data" / "mamba-128x4-bytes"
COMMON = {"vocab_size": 50, "num_hidden_layers": 2, "bos_token_id": None, "eos_token_id": None}
ROTARY = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
CONFIGS = {
    "gpt2": GPT2Config(**COMMON, n_positions=64, n_embd=32, n_head=2),
    "smollm2": LlamaConfig(**COMMON, **ROTARY, intermediate_size=64),
    "qwen3": Qwen3Config(**COMMON, **ROTARY, intermediate_size=64, head_dim=12),
    "mamba": MambaConfig(**COMMON, hidden_size=32, pad_token_id=None),
    "mamba2": Mamba2Config(
        **COMMON, hidden_size=32, num_heads=4, head_dim=16, n_groups=1, pad_token_id=None
    ),
    "hf": OPTConfig(
        **COMMON,
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
    """A saved model with a language head for each family: name -> (model, path)."""
    saved = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config).eval()
        path = tmp_path_factory.mktemp(name)
        model.save_pretrained(path)
        saved[name] = model, path
    return saved


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_checkpoint_keeps_its_shape_and_equals_transformers(name, checkpoints, compose):
    model, path = checkpoints[name]
    backbone = make_backbone(
        compose(f"backbone={name}", "pretrained=true", f"backbone.path={path}")
    )
    words = torch.randint(50, (2, 9))
    # Of all families but OPT, these hidden states enter the head unchanged.
    expected = model.base_model(words).last_hidden_state
    tokens = model.get_input_embeddings()(words)
    assert backbone.width == model.config.hidden_size
    torch.testing.assert_close(encode(backbone, tokens), expected, rtol=1e-4, atol=2e-5)
    # Our tokens get the RMS of the embeddings that the checkpoint was trained with.
    rms = model.get_input_embeddings().weight.square().mean().sqrt().item()
    assert backbone.input_rms == pytest.approx(rms, rel=1e-6)
    assert rms != pytest.approx(1.0, rel=0.1)


@torch.no_grad()
def test_bundled_mamba_predicts_english_bytes(compose):
    backbone = make_backbone(
        compose("backbone=mamba", "pretrained=true", f"backbone.path={BYTE_MAMBA}")
    )
    table = AutoModelForCausalLM.from_pretrained(BYTE_MAMBA).get_input_embeddings().weight
    text = b"The first of these is that the house was built by the river, and the second is that "
    ids = torch.tensor(list(text))
    logits = encode(backbone, table[ids].unsqueeze(0))[0] @ table.T
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:]).item()
    assert loss < 2.2, "byte unigrams reach 3.4 nats, bigrams 2.7"


def test_embedding_rms_includes_lookup_scale():
    class Scaled(torch.nn.Embedding):
        def forward(self, words):
            return 3 * super().forward(words)

    table = Scaled(2, 2)
    table.weight.data = torch.tensor([[1.0, 1.0], [7.0, 7.0]])
    assert embedding_rms(table) == pytest.approx(15.0)  # 3 * sqrt((1 + 49) / 2)


def test_hf_checkpoint_needs_no_model_type_but_checks_a_given_one(checkpoints, compose):
    path = checkpoints["smollm2"][1]
    assert make_backbone(compose("backbone=hf", "pretrained=true", f"backbone.path={path}"))
    other_type = ["backbone=hf", "backbone.model_type=qwen3", "pretrained=true"]
    with refused(ConfigError, path, "llama", "qwen3"):
        make_backbone(compose(*other_type, f"backbone.path={path}"))


@pytest.fixture
def saved(checkpoints):
    return checkpoints["gpt2"]


def test_checkpoint_is_loaded_without_dropout(saved, compose):
    backbone = make_backbone(compose("pretrained=true", f"backbone.path={saved[1]}"))
    dropouts = [m.p for m in backbone.modules() if isinstance(m, torch.nn.Dropout)]
    assert set(dropouts) == {0.0}


@pytest.mark.parametrize(
    ("source", "part"),
    [("/no/such/directory", "directory"), ("nobody/no-such-model", "hub")],
)
def test_missing_checkpoint_is_refused(source, part, compose):
    with refused(ConfigError, source, part, "backbone.path"):
        make_backbone(compose("pretrained=true", f"backbone.path={source}"))


def test_checkpoint_of_other_architecture_is_refused(tmp_path, compose):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with refused(ConfigError, tmp_path, "bert", "gpt2"):
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))


def test_directory_without_checkpoint_is_refused(tmp_path, compose):
    with refused(ConfigError, f"backbone.path={tmp_path}"):
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))


def test_truncated_checkpoint_is_refused(saved, tmp_path, compose):
    saved[0].save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with refused(ConfigError, f"backbone.path={tmp_path}"):
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))


@pytest.mark.parametrize(
    ("part", "lacking"), [("transformer.h.1.mlp.", 4), ("transformer.", 28)], ids=["some", "all"]
)
def test_checkpoint_with_missing_weights_is_refused(saved, tmp_path, compose, part, lacking):
    # transformers would draw them at random, in a run recorded as pretrained.
    saved[0].save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    renamed = {key.replace(part, "other."): value for key, value in load_file(file).items()}
    save_file(renamed, file, {"format": "pt"})
    with refused(ConfigError, tmp_path, f" {lacking} of", "weights", "h."):
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))


def test_pretrained_size_without_checkpoint_is_refused(compose):
    with refused(ConfigError, "pretrained=true", "size XS", "backbone.path"):
        make_backbone(compose("pretrained=true"))


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize(
    ("model_type", "key"),
    [
        ("gpt2", "n_layer"),
        ("gpt2", "num_hidden_layers"),
        ("llama", "hidden_size"),
        ("llama", "intermediate_size"),
        ("llama", "num_attention_heads"),
        ("opt", "max_position_embeddings"),
        ("qwen3", "num_key_value_heads"),
        ("qwen3", "head_dim"),
    ],
)
def test_size_below_one_is_refused_by_key(model_type, key, number):
    with refused(ConfigError, f"backbone.config.{key}={number}"):
        model_from_scratch(model_type, {key: number})


@pytest.mark.parametrize(
    ("model_type", "keys", "named"),
    [
        ("gpt2", {"n_embd": 32, "n_head": 3}, ["n_head=3", "n_embd=32"]),
        ("phi", {"hidden_size": 32, "num_attention_heads": 3}, ["num_attention_heads=3"]),
        ("llama", {"num_attention_heads": 4, "num_key_value_heads": 3}, ["num_key_value_heads=3"]),
        ("llama", {"num_hidden_layers": 1.5}, ["num_hidden_layers", "1.5"]),
    ],
)
def test_sizes_that_contradict_each_other_are_refused_by_key(model_type, keys, named):
    with refused(ConfigError, "backbone.config", *named):
        model_from_scratch(model_type, keys)


def test_heads_with_a_size_of_their_own_need_not_divide_the_width():
    keys = {"hidden_size": 32, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 8}
    more = {"num_hidden_layers": 1, "intermediate_size": 8}
    assert model_from_scratch("qwen3", keys | more).config.num_attention_heads == 3
