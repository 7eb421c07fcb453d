"""Impossible backbones are refused with a one-line error; shapes match the published checkpoints."""

from pathlib import Path

import pytest
import torch
from refusals import refused
from transformers import AutoConfig, AutoModel

from llmdreamer.backbones import make_backbone
from llmdreamer.backbones.window import make_window
from llmdreamer.config.catalog import CATALOG
from llmdreamer.utils.errors import ConfigError

torch.set_num_threads(1)
BYTE_MAMBA = Path(__file__).parents[1] / "data" / "mamba-128x4-bytes"


def test_context_longer_than_position_table_is_refused(compose):
    config = "backbone.config={n_embd:32,n_layer:1,n_head:2,n_positions:128}"
    gpt2 = ["backbone=hf", "backbone.model_type=gpt2", config]
    with refused(ConfigError, "seq_len=129", "128 positions"):
        make_backbone(compose(*gpt2, "algo.world_model.hf_model.seq_len=129"))


OPT = "{hidden_size:32,word_embed_proj_dim:32,num_hidden_layers:1,num_attention_heads:2,ffn_dim:64}"


def make_checked_window(change, compose):
    """Check a small OPT whose outputs are changed by `change(outputs, tokens)`."""
    backbone = make_backbone(
        compose("backbone=hf", "backbone.model_type=opt", f"backbone.config={OPT}")
    )
    forward = backbone.model.forward

    def changed(inputs_embeds, **inputs):
        outputs = forward(inputs_embeds=inputs_embeds, **inputs)
        outputs.last_hidden_state = change(outputs.last_hidden_state, inputs_embeds)
        return outputs

    backbone.model.forward = changed
    return make_window(backbone.model, 16, 1.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda outputs, tokens: outputs * tokens.shape[1], "how many tokens"),
        (lambda outputs, tokens: outputs * tokens.shape[0], "how many tokens"),
        (lambda outputs, tokens: outputs + tokens[:, -1:], "not causal"),
        (lambda outputs, tokens: outputs + torch.rand(1) * 1e-9, "random numbers"),
    ],
    ids=["length", "batch", "future", "noise"],
)
def test_model_whose_outputs_depend_on_more_than_the_past_is_refused(change, reason, compose):
    with refused(ConfigError, "opt", reason):
        make_checked_window(change, compose)
    make_checked_window(lambda outputs, tokens: outputs, compose)


@pytest.mark.parametrize(("context", "positions"), [(32, 128), (256, 256)])
def test_position_table_from_scratch_covers_context(context, positions, compose):
    model = make_backbone(compose(f"algo.world_model.hf_model.seq_len={context}")).model
    assert model.wpe.weight.shape == (positions, 128)


def test_recurrent_state_size_unequal_to_width_is_refused(compose):
    key = "algo.world_model.recurrent_model.recurrent_state_size"
    with refused(ConfigError, f"{key}=100", "backbone=gpt2", "XS", "128"):
        make_backbone(compose(f"{key}=100"))
    checkpoint = ["backbone=mamba", "model=S", "pretrained=true", f"backbone.path={BYTE_MAMBA}"]
    with refused(ConfigError, f"{key}=768", f"backbone.path={BYTE_MAMBA}", "is 128"):
        make_backbone(compose(*checkpoint, f"{key}=768"))


def test_width_applies_to_gru_and_is_refused_for_gpt2(compose):
    gru = make_backbone(compose("backbone=gru", "backbone.width=48"))
    assert gru.width == 48 and sum(p.numel() for p in gru.parameters()) == 6 * 48**2 + 3 * 48
    with refused(ConfigError, "backbone.width=48", "backbone=gpt2"):
        compose("backbone=gpt2", "backbone.width=48")


# Millions of weights in the published checkpoints; tied word embeddings are counted once.
PUBLISHED = {
    ("gpt2", "S", 50257): 124.4,
    ("smollm2", "S", 49152): 134.5,
    ("smollm2", "M", 49152): 361.8,
    ("smollm2", "L", 49152): 1711.4,
    ("qwen3", "M", 151936): 596.0,
    ("qwen3", "L", 151936): 1720.6,
    ("mamba", "S", 50280): 129.1,
    ("mamba", "M", 50280): 371.5,
    ("mamba", "L", 50280): 793.2,
    ("mamba2", "S", 50288): 128.99,
    ("mamba2", "M", 50288): 368.0,
    ("mamba2", "L", 50288): 780.0,
}


@pytest.mark.parametrize(("name", "size", "words"), PUBLISHED)
def test_shape_has_as_many_weights_as_published_checkpoint(name, size, words):
    family = CATALOG[name]
    shape = family.sizes[size]
    keys = {"hidden_size": shape.width, "num_hidden_layers": shape.layers, **shape.config}
    config = AutoConfig.for_model(family.model_type, vocab_size=words, **keys, pad_token_id=None)
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert millions == pytest.approx(PUBLISHED[name, size, words], rel=2e-3)


@pytest.mark.parametrize("name", CATALOG)
def test_size_xs_has_similar_weight_count_for_all_backbones(name, compose):
    backbone = make_backbone(compose(f"backbone={name}"))
    assert 0.38e6 < sum(p.numel() for p in backbone.parameters()) < 0.48e6


HF = ["backbone=hf"]


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["backbone=qwen3", "model=S"], ["backbone=qwen3", "size S", "XS, M, L"]),
        (
            ["backbone=mamba2", "model=S", "pretrained=true"],
            ["pretrained=true", "size S", "transformers", "backbone.path"],
        ),
        ([*HF, "backbone.model_type=lama"], ["backbone.model_type=lama", "'llama'"]),
        ([*HF, "backbone.model_type=t5"], ["backbone.model_type=t5", "causal"]),
        (
            [*HF, "backbone.model_type=llama", "backbone.config={hiden_size:32}"],
            ["backbone.config.hiden_size", "llama", "'hidden_size'"],
        ),
        (
            [
                *HF,
                "backbone.model_type=llama",
                "backbone.config={hidden_size:33,num_attention_heads:2}",
            ],
            ["backbone.config", "llama", "ValueError: ", "33"],
        ),
        (
            [
                *HF,
                "backbone.model_type=bert",
                "backbone.config={hidden_size:32,num_hidden_layers:1,num_attention_heads:2}",
            ],
            ["bert", "causal"],
        ),
        (
            [
                *HF,
                "backbone.model_type=opt",
                "backbone.config={hidden_size:32,num_hidden_layers:1,num_attention_heads:2,"
                "max_position_embeddings:8}",
            ],
            ["seq_len=32", "opt", "8 positions"],
        ),
        (
            [
                *HF,
                "backbone.model_type=mistral",
                "backbone.config={hidden_size:32,num_hidden_layers:1,num_attention_heads:2,"
                "num_key_value_heads:2,intermediate_size:8,head_dim:16,sliding_window:8}",
            ],
            ["seq_len=32", "mistral", "8 tokens"],
        ),
        ([*HF, "backbone.model_type=gemma3"], ["backbone.model_type=gemma3", "gemma3_text"]),
        ([*HF, "backbone.model_type=musicgen"], ["backbone.model_type=musicgen", "several models"]),
        (
            [*HF, "backbone.model_type=dbrx", "backbone.config={d_model:32,n_heads:2,n_layers:1}"],
            ["backbone.config", "dbrx"],
        ),
        (
            [
                *HF,
                "backbone.model_type=mamba2",
                "backbone.config={hidden_size:32,num_hidden_layers:1,num_heads:4,head_dim:16,n_groups:3}",
            ],
            ["backbone.config", "mamba2", "n_groups=3", "4 heads"],
        ),
        (
            [
                *HF,
                "backbone.model_type=llama",
                "backbone.config={hidden_size:32,num_hidden_layers:1,num_attention_heads:4,"
                "num_key_value_heads:3,intermediate_size:8}",
            ],
            ["backbone.config.num_key_value_heads=3", "num_attention_heads=4"],
        ),
    ],
)
def test_invalid_backbone_is_refused(overrides, parts, compose):
    with refused(ConfigError, *parts):
        make_backbone(compose(*overrides))


SMALL_LLAMA = "hidden_size:32,num_hidden_layers:2,num_attention_heads:2,num_key_value_heads:2"
SMALL_LLAMA += ",intermediate_size:64,max_position_embeddings:256"
FACTORS = f"short_factor:[{','.join(['1.0'] * 8)}],long_factor:[{','.join(['4.0'] * 8)}]"
LONGROPE = f"rope_type:longrope,rope_theta:10000.0,{FACTORS}"


@pytest.mark.parametrize("kind", ["llama", "phi3"])
def test_context_above_the_limit_of_longrope_is_refused(kind, compose):
    rope = f"rope_parameters:{{{LONGROPE},original_max_position_embeddings:32}}"
    config = f"backbone.config={{{SMALL_LLAMA},{rope}}}"
    if kind == "phi3":
        config = config.replace(
            "rope_parameters", "original_max_position_embeddings:32,rope_parameters"
        )
    overrides = [*HF, f"backbone.model_type={kind}", config]
    make_backbone(compose(*overrides, "algo.world_model.hf_model.seq_len=32"))
    with refused(ConfigError, "seq_len=33", kind, "at most 32"):
        make_backbone(compose(*overrides, "algo.world_model.hf_model.seq_len=33"))


def test_context_above_the_limit_of_dynamic_rotation_is_refused(compose):
    rope = "rope_parameters:{rope_type:dynamic,rope_theta:10000.0,factor:2.0}"
    config = f"backbone.config={{{SMALL_LLAMA},{rope}}}"
    with refused(ConfigError, "seq_len=257", "llama", "at most 256"):
        make_backbone(
            compose(
                *HF, "backbone.model_type=llama", config, "algo.world_model.hf_model.seq_len=257"
            )
        )


ROBERTA = "{is_decoder:true,hidden_size:32,num_hidden_layers:1,num_attention_heads:2"
ROBERTA += ",intermediate_size:8,max_position_embeddings:12}"


def test_positions_that_start_after_the_pad_shorten_the_context(compose):
    roberta = [*HF, "backbone.model_type=roberta", f"backbone.config={ROBERTA}"]
    with refused(ConfigError, "seq_len=12", "roberta", "at most 11"):
        make_backbone(compose(*roberta, "algo.world_model.hf_model.seq_len=12"))
    make_backbone(compose(*roberta, "algo.world_model.hf_model.seq_len=11"))


@pytest.mark.parametrize("kind", ["cwm", "modernbert-decoder"])
def test_model_whose_special_tokens_may_not_be_null_is_built(kind, compose):
    shape = "{hidden_size:32,num_hidden_layers:1,num_attention_heads:4,intermediate_size:8}"
    if kind == "cwm":
        shape = shape.replace("}", ",num_key_value_heads:4,head_dim:8}")
    backbone = make_backbone(
        compose(*HF, f"backbone.model_type={kind}", f"backbone.config={shape}")
    )
    assert backbone.width == 32


def test_length_dependent_rotation_uses_window_backbone(compose):
    from llmdreamer.backbones.window import WindowBackbone

    shape = "hidden_size:32,num_hidden_layers:1,num_attention_heads:2,intermediate_size:8"
    rope = "rope_parameters:{rope_type:dynamic,rope_theta:10000.0,factor:2.0}"
    config = f"backbone.config={{{shape},{rope}}}"
    backbone = make_backbone(compose(*HF, "backbone.model_type=llama", config))
    assert isinstance(backbone, WindowBackbone)
