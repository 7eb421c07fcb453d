"""Adapters: they start as the identity, they alone train, and those that could not are refused."""

import pytest
import torch
from peft.tuners.lora import LoraLayer
from refusals import refused

from llmdreamer.backbones import make_backbone
from llmdreamer.backbones.lora import adapter_norms, add_lora, check_adapters, merged
from llmdreamer.utils.errors import ConfigError

torch.set_num_threads(1)
NAMES = ["gpt2", "smollm2", "qwen3", "pythia", "mamba", "mamba2"]
# Attention that is trusted with our mask, and the window that is encoded anew at each step.
ANY = {
    "olmo2": "{hidden_size:32,num_hidden_layers:2,num_attention_heads:2,num_key_value_heads:2,"
    "intermediate_size:64}",
    "opt": "{hidden_size:32,word_embed_proj_dim:32,num_hidden_layers:2,num_attention_heads:2,"
    "ffn_dim:64}",
}
ANY_CASES = {
    kind: ["backbone=hf", f"backbone.model_type={kind}", f"backbone.config={config}"]
    + ["lora.target_modules=[q_proj,v_proj]"]
    for kind, config in ANY.items()
}
CASES = {name: [f"backbone={name}"] for name in NAMES} | ANY_CASES


def encode(backbone, tokens):
    return backbone.eval().observe(tokens, torch.zeros(1, tokens.shape[1], dtype=torch.bool))[0]


def rounded(backbone, tokens):
    with torch.autocast("cpu", torch.bfloat16):
        return encode(backbone, tokens)


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_adapters_start_as_the_identity(name, compose):
    cfg = compose(*CASES[name])
    torch.manual_seed(0)
    backbone = make_backbone(cfg)
    tokens = torch.randn(1, 5, backbone.width)
    before = [encode(backbone, tokens), rounded(backbone, tokens)]
    add_lora(backbone.model, cfg.lora)
    torch.testing.assert_close(encode(backbone, tokens), before[0])
    # What is added is zero, and stays so however it is rounded.
    assert torch.equal(rounded(backbone, tokens), before[1])
    assert not torch.equal(before[0], before[1])


@pytest.mark.parametrize("name", CASES)
def test_with_adapters_only_adapters_train(name, compose):
    backbone = make_backbone(compose(*CASES[name], "peft=true"))
    training = [name for name, p in backbone.named_parameters() if p.requires_grad]
    # A and B, of one or two layers in each block.
    per_block = 4 if name in {"smollm2", "qwen3", *ANY} else 2
    assert len(training) == per_block * backbone.model.config.num_hidden_layers
    assert all(".lora_" in name for name in training)


def test_building_with_adapters_draws_nothing_after_the_weights(compose):
    torch.manual_seed(0)
    backbone = make_backbone(compose("backbone=gpt2", "peft=true"))
    after = torch.rand(1)
    assert backbone.training and all(param.grad is None for param in backbone.parameters())
    torch.manual_seed(0)
    cfg = compose("backbone=gpt2")
    add_lora(make_backbone(cfg).model, cfg.lora)
    assert torch.equal(torch.rand(1), after)


def test_adapters_without_a_layer_are_refused_with_the_layers_there_are(compose):
    cfg = compose("backbone=gpt2", "peft=true", "lora.target_modules=[q_proj]")
    with refused(ConfigError, "lora.target_modules", "q_proj", "c_attn, c_fc, c_proj"):
        make_backbone(cfg)


@pytest.mark.parametrize("target", ["in_proj", "x_proj", "dt_proj"])
def test_our_scan_trains_adapters_that_the_one_of_transformers_passes_by(target, compose):
    backbone = make_backbone(
        compose("backbone=mamba", "peft=true", f"lora.target_modules=[{target}]")
    )
    (encode(backbone, torch.randn(1, 4, 128)) * torch.randn(128)).sum().backward()
    assert all(p.grad.any() for n, p in backbone.named_parameters() if ".lora_B." in n)


@pytest.mark.parametrize("name", ["mamba", "mamba2"])
@pytest.mark.parametrize("target", ["out_proj", "conv1d"])
def test_adapters_that_peft_cannot_put_into_mamba_are_one_line(name, target, compose):
    cfg = compose(f"backbone={name}", "peft=true", f"lora.target_modules=[{target}]")
    with refused(ConfigError, target):
        make_backbone(cfg)


# FalconMamba is Mamba in the generic path: transformers reads dt_proj's weight past its adapter.
FALCON = [
    "backbone=hf",
    "backbone.model_type=falcon_mamba",
    "backbone.config={hidden_size:32,num_hidden_layers:2}",
    "peft=true",
]


def test_adapters_without_a_gradient_are_refused(compose):
    cfg = compose(*FALCON, "lora.target_modules=[in_proj,dt_proj]")
    with refused(ConfigError, "lora.target_modules", "['dt_proj']", "gradient"):
        make_backbone(cfg)


def test_a_model_without_usual_targets_asks_for_them(compose):
    with refused(ConfigError, "lora.target_modules", "falcon_mamba"):
        make_backbone(compose(*FALCON))


def test_an_adapter_that_is_cut_off_is_found(compose):
    backbone = make_backbone(compose("backbone=smollm2", "peft=true"))
    backbone.model.layers[1].self_attn.v_proj.forward = lambda x: x[..., :64].detach()
    with refused(ConfigError, "lora.target_modules", "['v_proj']", "gradient"):
        check_adapters(backbone)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "smollm2", "mamba"])
def test_an_adapters_norm_is_that_of_what_it_adds_to_the_weights(name, compose):
    """Merged by peft itself, the weights have moved by as much as is told."""
    backbone = make_backbone(compose(f"backbone={name}", "peft=true"))
    assert set(adapter_norms(backbone).values()) == {0.0}
    layers = {n: m for n, m in backbone.model.named_modules() if isinstance(m, LoraLayer)}
    for layer in layers.values():
        layer.lora_B["default"].weight.normal_()
    told = adapter_norms(backbone)
    assert told.keys() == layers.keys()
    for layer_name, layer in layers.items():
        before = layer.get_base_layer().weight.clone()
        layer.merge()
        moved = (layer.get_base_layer().weight - before).norm() / before.norm()
        assert told[layer_name] == pytest.approx(moved.item(), rel=1e-4)


def test_without_adapters_there_are_no_norms(compose):
    assert adapter_norms(make_backbone(compose("backbone=gru"))) == {}


def adapted(name, compose, *more):
    """A backbone whose adapters change its outputs, and tokens for it."""
    torch.manual_seed(0)
    backbone = make_backbone(compose(f"backbone={name}", "peft=true", *more))
    for weight_name, weight in backbone.named_parameters():
        if ".lora_B." in weight_name:
            torch.nn.init.normal_(weight, std=0.02)
    return backbone, torch.randn(1, 5, backbone.width)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "smollm2", "mamba"])
def test_merged_adapters_give_the_same_and_leave_the_weights_as_they_were(name, compose):
    backbone, tokens = adapted(name, compose)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    apart = encode(backbone, tokens)
    with backbone.merged():
        together = encode(backbone, tokens)
        step, _ = backbone.step(tokens[:, 0], backbone.initial_cache(1))
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(step, apart[:, 0], rtol=1e-4, atol=1e-5)
    assert torch.equal(encode(backbone, tokens), apart)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())


def test_merged_weights_are_what_is_multiplied_by(compose):
    backbone, tokens = adapted("gpt2", compose)
    calls = []
    for layer in backbone.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A["default"].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad(), backbone.merged():
        encode(backbone, tokens)
    assert not calls
    encode(backbone, tokens)
    assert len(calls) == backbone.model.config.num_hidden_layers


def test_a_graph_from_before_merging_gives_the_same_gradients(compose):
    backbone, tokens = adapted("gpt2", compose)
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


def test_adapters_drop_inputs_where_they_learn_and_nowhere_else(compose):
    backbone, tokens = adapted("smollm2", compose, "lora.dropout=0.5")
    whole = encode(backbone, tokens)
    none = torch.zeros(1, tokens.shape[1], dtype=torch.bool)
    backbone.train()
    learned = [backbone.observe(tokens, none)[0] for _ in range(2)]
    assert not torch.equal(*learned) and not torch.equal(learned[0], whole)
    with torch.no_grad():
        assert torch.equal(backbone.observe(tokens, none)[0], whole)
        with backbone.merged():
            torch.testing.assert_close(backbone.observe(tokens, none)[0], whole)
        cache, steps = backbone.initial_cache(1), []
        for token in tokens.unbind(1):
            deter, cache = backbone.step(token, cache)
            steps.append(deter)
    torch.testing.assert_close(torch.stack(steps, 1), whole)


def test_without_adapters_there_is_nothing_to_merge(compose):
    backbone = make_backbone(compose("backbone=gru"))
    before = backbone.from_token.weight.data_ptr()
    with backbone.merged():
        assert backbone.from_token.weight.data_ptr() == before
