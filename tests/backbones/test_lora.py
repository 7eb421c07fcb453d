"""LoRA adapters start as the identity, are the only weights trained, and are refused if untrainable."""

import pytest
import torch
from peft.tuners.lora import LoraLayer
from refusals import refused

from llmdreamer.backbones import make_backbone
from llmdreamer.backbones.lora import adapter_norms, add_lora, check_adapters, merged
from llmdreamer.utils.errors import ConfigError

torch.set_num_threads(1)
NAMES = ["gpt2", "smollm2", "qwen3", "pythia", "mamba", "mamba2"]
# One architecture with the attention backbone, one with the window backbone.
HF_CONFIGS = {
    "olmo2": "{hidden_size:32,num_hidden_layers:2,num_attention_heads:2,num_key_value_heads:2,"
    "intermediate_size:64}",
    "opt": "{hidden_size:32,word_embed_proj_dim:32,num_hidden_layers:2,num_attention_heads:2,"
    "ffn_dim:64}",
}
HF_CASES = {
    kind: ["backbone=hf", f"backbone.model_type={kind}", f"backbone.config={config}"]
    + ["lora.target_modules=[q_proj,v_proj]"]
    for kind, config in HF_CONFIGS.items()
}
CASES = {name: [f"backbone={name}"] for name in NAMES} | HF_CASES


def encode(backbone, tokens):
    return backbone.eval().observe(tokens, torch.zeros(1, tokens.shape[1], dtype=torch.bool))[0]


def encode_in_bfloat16(backbone, tokens):
    with torch.autocast("cpu", torch.bfloat16):
        return encode(backbone, tokens)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_adapters_at_start_are_identity(name, compose):
    cfg = compose(*CASES[name])
    torch.manual_seed(0)
    backbone = make_backbone(cfg)
    tokens = torch.randn(1, 5, backbone.width)
    before = [encode(backbone, tokens), encode_in_bfloat16(backbone, tokens)]
    add_lora(backbone.model, cfg.lora)
    torch.testing.assert_close(encode(backbone, tokens), before[0])
    # Adapters add exactly zero, in bfloat16 too.
    assert torch.equal(encode_in_bfloat16(backbone, tokens), before[1])
    assert not torch.equal(before[0], before[1])


@pytest.mark.parametrize("name", CASES)
def test_adapters_are_the_only_trained_weights(name, compose):
    backbone = make_backbone(compose(*CASES[name], "peft=true"))
    trained = [name for name, p in backbone.named_parameters() if p.requires_grad]
    # A and B, of one or two layers in each block.
    per_block = 4 if name in {"smollm2", "qwen3", *HF_CONFIGS} else 2
    assert len(trained) == per_block * backbone.model.config.num_hidden_layers
    assert all(".lora_" in name for name in trained)


def test_building_adapters_draws_no_other_random_numbers(compose):
    torch.manual_seed(0)
    backbone = make_backbone(compose("backbone=gpt2", "peft=true"))
    next_draw = torch.rand(1)
    assert backbone.training and all(param.grad is None for param in backbone.parameters())
    torch.manual_seed(0)
    cfg = compose("backbone=gpt2")
    add_lora(make_backbone(cfg).model, cfg.lora)
    assert torch.equal(torch.rand(1), next_draw)


def test_unknown_target_is_refused_with_choices(compose):
    cfg = compose("backbone=gpt2", "peft=true", "lora.target_modules=[q_proj]")
    with refused(ConfigError, "lora.target_modules", "q_proj", "c_attn, c_fc, c_proj"):
        make_backbone(cfg)


@pytest.mark.parametrize("target", ["in_proj", "x_proj", "dt_proj"])
def test_scan_trains_adapters_that_transformers_skips(target, compose):
    backbone = make_backbone(
        compose("backbone=mamba", "peft=true", f"lora.target_modules=[{target}]")
    )
    (encode(backbone, torch.randn(1, 4, 128)) * torch.randn(128)).sum().backward()
    assert all(p.grad.any() for n, p in backbone.named_parameters() if ".lora_B." in n)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("target", ["out_proj", "conv1d"])
def test_target_that_peft_cannot_adapt_is_refused(name, target, compose):
    cfg = compose(f"backbone={name}", "peft=true", f"lora.target_modules=[{target}]")
    with refused(ConfigError, target):
        make_backbone(cfg)


# FalconMamba uses the window backbone: transformers reads the weight of dt_proj without its adapter.
FALCON = [
    "backbone=hf",
    "backbone.model_type=falcon_mamba",
    "backbone.config={hidden_size:32,num_hidden_layers:2}",
    "peft=true",
]


@pytest.mark.parametrize("targets", ["[in_proj,dt_proj]", "[dt_proj]"])
def test_adapter_without_gradient_is_refused(targets, compose):
    cfg = compose(*FALCON, f"lora.target_modules={targets}")
    with refused(ConfigError, "lora.target_modules", "['dt_proj']", "gradient"):
        make_backbone(cfg)


def test_model_without_default_targets_is_refused(compose):
    with refused(ConfigError, "lora.target_modules", "falcon_mamba"):
        make_backbone(compose(*FALCON))


def test_check_adapters_finds_detached_adapter(compose):
    backbone = make_backbone(compose("backbone=smollm2", "peft=true"))
    backbone.model.layers[1].self_attn.v_proj.forward = lambda x: x[..., :64].detach()
    with refused(ConfigError, "lora.target_modules", "['v_proj']", "gradient"):
        check_adapters(backbone)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "smollm2", "mamba"])
def test_adapter_norm_equals_relative_weight_change_of_peft_merge(name, compose):
    backbone = make_backbone(compose(f"backbone={name}", "peft=true"))
    assert set(adapter_norms(backbone).values()) == {0.0}
    layers = {n: m for n, m in backbone.model.named_modules() if isinstance(m, LoraLayer)}
    for layer in layers.values():
        layer.lora_B["default"].weight.normal_()
    norms = adapter_norms(backbone)
    assert norms.keys() == layers.keys()
    for layer_name, layer in layers.items():
        before = layer.get_base_layer().weight.clone()
        layer.merge()
        change = (layer.get_base_layer().weight - before).norm() / before.norm()
        assert norms[layer_name] == pytest.approx(change.item(), rel=1e-4)


def test_adapter_norms_without_adapters_is_empty(compose):
    assert adapter_norms(make_backbone(compose("backbone=gru"))) == {}


def backbone_with_adapters(name, compose, *more):
    """Return a backbone whose adapters change its outputs, and tokens for it."""
    torch.manual_seed(0)
    backbone = make_backbone(compose(f"backbone={name}", "peft=true", *more))
    for weight_name, weight in backbone.named_parameters():
        if ".lora_B." in weight_name:
            torch.nn.init.normal_(weight, std=0.02)
    return backbone, torch.randn(1, 5, backbone.width)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "smollm2", "mamba"])
def test_merged_gives_equal_outputs_and_restores_weights(name, compose):
    backbone, tokens = backbone_with_adapters(name, compose)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    expected = encode(backbone, tokens)
    with backbone.merged():
        merged_output = encode(backbone, tokens)
        step, _ = backbone.step(tokens[:, 0], backbone.initial_cache(1))
    torch.testing.assert_close(merged_output, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step, expected[:, 0], rtol=1e-4, atol=1e-5)
    assert torch.equal(encode(backbone, tokens), expected)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


# peft adapts the experts' stacked weights, which are parameters and no layers.
EXPERTS = {
    "qwen3_next": "num_key_value_heads:2,num_experts:4,num_experts_per_tok:2,"
    "moe_intermediate_size:16,shared_expert_intermediate_size:16,linear_num_key_heads:2,"
    "linear_num_value_heads:2,linear_key_head_dim:8,linear_value_head_dim:8,head_dim:16",
    "deepseek_v3": "num_key_value_heads:4,n_routed_experts:4,num_experts_per_tok:2,n_group:1,"
    "topk_group:1,moe_intermediate_size:16,first_k_dense_replace:1,q_lora_rank:8,kv_lora_rank:8,"
    "qk_rope_head_dim:8,qk_nope_head_dim:8,v_head_dim:8",
}


@torch.no_grad()
@pytest.mark.parametrize("kind", EXPERTS)
def test_adapters_of_experts_are_merged_and_measured(kind, compose):
    shape = "hidden_size:32,num_hidden_layers:2,num_attention_heads:4,intermediate_size:64"
    torch.manual_seed(0)
    backbone = make_backbone(
        compose(
            "backbone=hf",
            f"backbone.model_type={kind}",
            f"backbone.config={{{shape},{EXPERTS[kind]}}}",
            "peft=true",
            "lora.target_modules=[down_proj]",
        )
    )
    tokens = torch.randn(1, 5, backbone.width)
    before = encode(backbone, tokens)
    assert set(adapter_norms(backbone).values()) == {0.0}
    for name, weight in backbone.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight, std=0.02)
    assert min(adapter_norms(backbone).values()) > 0
    expected = encode(backbone, tokens)
    assert not torch.allclose(expected, before, atol=1e-3)
    with backbone.merged():
        torch.testing.assert_close(encode(backbone, tokens), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(encode(backbone, tokens), expected)


def test_merged_does_not_call_adapters(compose):
    backbone, tokens = backbone_with_adapters("gpt2", compose)
    calls = []
    for layer in backbone.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A["default"].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), backbone.merged():
        encode(backbone, tokens)
    assert not calls
    encode(backbone, tokens)
    assert len(calls) == backbone.model.config.num_hidden_layers


def test_graph_from_before_merge_gives_equal_gradients(compose):
    backbone, tokens = backbone_with_adapters("gpt2", compose)
    gradients = []
    for merge in (False, True):
        backbone.zero_grad()
        loss = (encode(backbone, tokens) * torch.arange(backbone.width)).sum()
        if merge:
            with torch.no_grad(), merged(backbone):
                encode(backbone, tokens)
        loss.backward()
        gradients.append([p.grad.clone() for p in backbone.parameters() if p.requires_grad])
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True))


def test_lora_dropout_is_active_only_with_gradient(compose):
    backbone, tokens = backbone_with_adapters("smollm2", compose, "lora.dropout=0.5")
    expected = encode(backbone, tokens)
    is_first = torch.zeros(1, tokens.shape[1], dtype=torch.bool)
    backbone.train()
    dropped = [backbone.observe(tokens, is_first)[0] for _ in range(2)]
    assert not torch.equal(*dropped) and not torch.equal(dropped[0], expected)
    with torch.no_grad():
        assert torch.equal(backbone.observe(tokens, is_first)[0], expected)
        with backbone.merged():
            torch.testing.assert_close(backbone.observe(tokens, is_first)[0], expected)
        cache, steps = backbone.initial_cache(1), []
        for token in tokens.unbind(1):
            deter, cache = backbone.step(token, cache)
            steps.append(deter)
    torch.testing.assert_close(torch.stack(steps, 1), expected)


def test_merged_without_adapters_changes_nothing(compose):
    backbone = make_backbone(compose("backbone=gru"))
    before = backbone.from_token.weight.data_ptr()
    with backbone.merged():
        assert backbone.from_token.weight.data_ptr() == before
