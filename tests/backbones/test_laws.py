"""Every backbone satisfies the laws of llmdreamer.testing.backbone_laws; some have further tests."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoConfig

from llmdreamer.backbones import attention, make_backbone
from llmdreamer.backbones.attention import AttentionBackbone, RingKVCache
from llmdreamer.backbones.shared_prefix import SharedPrefixCache
from llmdreamer.backbones.window import WindowBackbone
from llmdreamer.config.catalog import IGNORES_ATTENTION_KWARGS, ROTARY_POSITIONS
from llmdreamer.testing.backbone_laws import LAWS, T, assert_close, encode_episode

torch.set_num_threads(1)


def overrides(name, context, *more):
    return (f"backbone={name}", f"algo.world_model.hf_model.seq_len={context}", *more)


# OPT counts positions from the mask, so it cannot take our mask: it gets the window backbone.
OPT = (
    "backbone.model_type=opt",
    "backbone.config={hidden_size:32,word_embed_proj_dim:32,num_hidden_layers:2,"
    "num_attention_heads:2,ffn_dim:64}",
)
CASES = {
    "gpt2-32": overrides("gpt2", 32),
    "gpt2-4": overrides("gpt2", 4),
    "gpt2-1": overrides("gpt2", 1),
    "smollm2-32": overrides("smollm2", 32),
    "smollm2-4": overrides("smollm2", 4),
    "qwen3-4": overrides("qwen3", 4),
    "pythia-4": overrides("pythia", 4),
    "mamba": overrides("mamba", 4),
    "mamba2": overrides("mamba2", 4),
    "window-32": overrides("hf", 32, *OPT),
    "window-4": overrides("hf", 4, *OPT),
    "window-1": overrides("hf", 1, *OPT),
    "gru": overrides("gru", 4),
    "block_gru": overrides("block_gru", 4, "backbone.width=64"),
}


@pytest.fixture
def always_share_prefix(monkeypatch):
    """Share the prefix at any size, not only from the size where it is faster."""
    monkeypatch.setattr(attention, "SHARED_PREFIX_MIN_BYTES", 0)


@pytest.fixture(scope="module", params=CASES)
def new_backbone(request, compose):
    torch.manual_seed(0)
    return make_backbone(compose(*CASES[request.param])).eval()


@pytest.fixture
def backbone(new_backbone):
    return deepcopy(new_backbone)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_backbone_satisfies_law(law, backbone):
    law(backbone)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ["gpt2", "smollm2", "qwen3", "pythia"])
def test_shared_prefix_satisfies_law(law, name, compose, always_share_prefix):
    torch.manual_seed(0)
    law(make_backbone(compose(*overrides(name, 16))).eval())


@torch.no_grad()
@pytest.mark.parametrize("peft", ["peft=true", "peft=false"])
@pytest.mark.parametrize("name", ["gpt2", "smollm2"])
def test_shared_prefix_and_ring_give_equal_outputs(name, peft, compose, monkeypatch):
    torch.manual_seed(0)
    backbone = make_backbone(compose(*overrides(name, 8), peft)).eval()
    tokens = torch.randn(3, 20, backbone.width)
    is_first = torch.zeros(3, 20, dtype=torch.bool)
    is_first[0, 0] = is_first[1, 9] = is_first[2, 19] = True
    _, caches = backbone.observe(tokens, is_first)
    starts = torch.tensor([[0, 7, 12], [8, 9, 10], [1, 18, 19]])
    imagined = torch.randn(4, 9, backbone.width)
    outputs = []
    for min_bytes, cache_type in ((1 << 40, RingKVCache), (0, SharedPrefixCache)):
        monkeypatch.setattr(attention, "SHARED_PREFIX_MIN_BYTES", min_bytes)
        cache = backbone.select(caches, starts, len(imagined))
        assert isinstance(cache, cache_type)
        for token in imagined:
            deter, cache = backbone.step(token, cache)
            outputs.append(deter)
    for copied, shared in zip(outputs[:4], outputs[4:], strict=True):
        assert_close(shared, copied)


@torch.no_grad()
def test_prefix_is_shared_only_where_it_is_faster(compose):
    backbone = make_backbone(compose(*overrides("gpt2", 32))).eval()
    _, caches = backbone.observe(torch.randn(16, 32, 128), torch.zeros(16, 32, dtype=torch.bool))

    def cache_type(starts, steps):
        return type(backbone.select(caches, torch.arange(starts).expand(16, -1), steps))

    assert cache_type(8, 15) is SharedPrefixCache  # the default run
    assert cache_type(4, 15) is RingKVCache  # 2 MB of copies fit into the processor's cache
    assert cache_type(8, 17) is RingKVCache  # most of what a step reads is the stream's own
    assert cache_type(8, None) is RingKVCache  # the number of steps is unknown


def change_inputs_in_place(model):
    """Let a model overwrite every tensor that it is given, as CTRL and GIT do with embeddings."""
    forward = model.forward

    def overwriting(inputs_embeds, **inputs):
        outputs = forward(inputs_embeds=inputs_embeds.mul_(2), **inputs)
        for value in inputs.values():
            if isinstance(value, torch.Tensor) and not torch.is_grad_enabled():
                value.zero_()  # with gradient the model itself still needs its positions
        return outputs

    model.forward = overwriting


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ["gpt2-4", "smollm2-4", "window-4"])
def test_model_that_changes_its_inputs_in_place_satisfies_law(law, name, compose):
    torch.manual_seed(0)
    backbone = make_backbone(compose(*CASES[name])).eval()
    change_inputs_in_place(backbone.model)
    law(backbone)


CTRL = overrides(
    "hf", 64, "backbone.model_type=ctrl", "backbone.config={n_embd:32,n_layer:2,n_head:4,dff:64}"
)
GIT = overrides(
    "hf",
    8,
    "backbone.model_type=git",
    "backbone.config={hidden_size:32,num_hidden_layers:2,num_attention_heads:4,"
    "intermediate_size:64}",
)


@torch.no_grad()
@pytest.mark.parametrize("config", [CTRL, GIT], ids=["ctrl", "git"])
def test_model_that_scales_embeddings_in_place_observes_as_it_steps(config, compose):
    torch.manual_seed(0)
    backbone = make_backbone(compose(*config)).eval()
    tokens = torch.randn(2, 80, backbone.width)
    given = tokens.clone()
    deter, _ = backbone.observe(tokens, torch.zeros(2, 80, dtype=torch.bool))
    cache = backbone.initial_cache(2)
    for t in range(80):
        stepped, cache = backbone.step(tokens[:, t], cache)
        assert_close(stepped, deter[:, t])
    assert torch.equal(tokens, given)


PHIMOE = overrides(
    "hf",
    8,
    "backbone.model_type=phimoe",
    "backbone.config={hidden_size:32,num_hidden_layers:2,num_attention_heads:4,"
    "num_key_value_heads:4,intermediate_size:64,num_local_experts:4,num_experts_per_tok:2,"
    "router_jitter_noise:0.1,input_jitter_noise:0.1}",
)
NOISY_OPT = overrides(
    "hf",
    8,
    "backbone.model_type=opt",
    "backbone.config={hidden_size:32,word_embed_proj_dim:32,num_hidden_layers:4,"
    "num_attention_heads:2,ffn_dim:64,layerdrop:0.5,dropout:0.5,attention_dropout:0.5}",
)


@pytest.mark.parametrize("config", [PHIMOE, NOISY_OPT], ids=["phimoe", "opt"])
def test_training_adds_no_noise(config, compose):
    torch.manual_seed(0)
    backbone = make_backbone(compose(*config))
    tokens, is_first = torch.randn(2, 12, backbone.width), torch.zeros(2, 12, dtype=torch.bool)
    expected, _ = backbone.eval().observe(tokens, is_first)
    random_state = torch.get_rng_state()
    deter, _ = backbone.train().observe(tokens, is_first)
    assert backbone.training and torch.equal(deter, expected)
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("name", CASES)
def test_backbone_same_seed_gives_same_weights(name, compose):
    weights = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        weights.append(
            torch.cat([p.flatten() for p in make_backbone(compose(*CASES[name])).parameters()])
        )
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


LANGUAGE_MODELS = ("gpt2-4", "smollm2-4", "qwen3-4", "pythia-4", "mamba", "mamba2", "window-4")
WITH_LORA = {name: ["peft=true"] for name in LANGUAGE_MODELS}
WITH_LORA["window-4"].append("lora.target_modules=[q_proj,fc1]")


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, []) for name in (*LANGUAGE_MODELS, "gru", "block_gru")), *WITH_LORA.items()],
    ids=lambda value: value if isinstance(value, str) else "lora" if value else "plain",
)
def test_weights_saved_and_loaded_give_equal_outputs(name, more, compose, tmp_path):
    cfg = compose(*CASES[name], *more)
    saved, loaded = make_backbone(cfg).eval(), make_backbone(cfg).eval()
    tokens = torch.randn(5, saved.width)
    assert not torch.equal(encode_episode(saved, tokens), encode_episode(loaded, tokens))
    torch.save(saved.state_dict(), tmp_path / "weights.pt")
    loaded.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(encode_episode(saved, tokens), encode_episode(loaded, tokens))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode_episode(saved, tokens), encode_episode(loaded, tokens))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "context"), [("gpt2", 64), ("gpt2", 256), ("smollm2", 256), ("hf", 64)]
)
def test_long_context_step_and_select_equal_observe(name, context, compose):
    torch.manual_seed(0)
    backbone = make_backbone(
        compose(*overrides(name, context, *(OPT if name == "hf" else ())))
    ).eval()
    length = context + 6
    tokens = torch.randn(1, length, backbone.width)
    deter, caches = backbone.observe(tokens, torch.zeros(1, length, dtype=torch.bool))
    cache = backbone.initial_cache(1)
    for t in range(length):
        stepped, cache = backbone.step(tokens[:, t], cache)
        assert_close(stepped[0], deter[0, t])
    # From one token where the cache is not full yet, and one where it is.
    starts = torch.tensor([[context - 3, length - 4]])
    cache = backbone.select(caches, starts)
    for offset in range(1, 4):
        following = starts[0] + offset
        stepped, cache = backbone.step(tokens[0, following], cache)
        assert_close(stepped, deter[0, following])


@torch.no_grad()
def test_attention_one_layer_sees_exactly_context_tokens(compose):
    backbone = make_backbone(compose(*CASES["gpt2-4"], "backbone=gpt2")).eval()
    # One layer only: a second one would see further back through the first.
    backbone.model.h = backbone.model.h[:1]
    tokens = torch.randn(1, 8, backbone.width)
    other = tokens.clone()
    other[0, 2] += 1
    changed = (encode_episode(backbone, tokens[0]) - encode_episode(backbone, other[0])).abs().amax(
        -1
    ) > 0
    assert changed.tolist() == [False, False, True, True, True, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "smollm2", "hf"])
def test_context_of_one_keeps_no_past_tokens(name, compose):
    """A context of one is the control arm for tasks that need the past."""
    backbone = make_backbone(compose(*overrides(name, 1, *(OPT if name == "hf" else ())))).eval()
    tokens = torch.randn(6, backbone.width)
    other = tokens.clone()
    other[2] += 1
    changed = (encode_episode(backbone, tokens) - encode_episode(backbone, other)).abs().amax(
        -1
    ) > 0
    assert changed.tolist() == [False, False, True, False, False, False]


def test_training_reaches_every_learned_position(compose):
    backbone = make_backbone(compose(*CASES["gpt2-4"])).train()
    torch.manual_seed(0)
    deter, _ = backbone.observe(torch.randn(512, 4, 128), torch.zeros(512, 4, dtype=torch.bool))
    deter.square().sum().backward()
    assert (backbone.model.wpe.weight.grad.norm(dim=1) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("config", ["", "use_bias:true,", "use_conv_bias:false,"])
def test_scan_equals_transformers_forward(kind, config, compose):
    # Two groups of heads; the shapes in the catalog have one.
    more = "num_heads:4,head_dim:16,n_groups:2," if kind == "mamba2" else ""
    keys = f"{{{config}{more}hidden_size:32,num_hidden_layers:2,state_size:8}}"
    torch.manual_seed(0)
    backbone = make_backbone(
        compose("backbone=hf", f"backbone.model_type={kind}", f"backbone.config={keys}")
    )
    tokens = torch.randn(2, 40, 32)
    deter, _ = backbone.observe(tokens, torch.zeros(2, 40, dtype=torch.bool))
    expected = backbone.model(inputs_embeds=tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(deter, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(ROTARY_POSITIONS))
def test_rotary_architecture_satisfies_laws(kind, compose, always_share_prefix):
    default = AutoConfig.for_model(kind)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 16}
    available = {*default.to_dict(), *default.attribute_map}
    keys = ",".join(f"{key}:{value}" for key, value in small.items() if key in available)
    torch.manual_seed(0)
    backbone = make_backbone(
        compose(*overrides("hf", 4, f"backbone.model_type={kind}", f"backbone.config={{{keys}}}"))
    ).eval()
    assert isinstance(backbone, AttentionBackbone)
    tokens = torch.randn(1, T, 32)
    is_first = torch.zeros(1, T, dtype=torch.bool)
    is_first[0, 5] = True
    deter, caches = backbone.observe(tokens, is_first)
    assert_close(deter[0, 5:], encode_episode(backbone, tokens[0, 5:]))
    cache = backbone.initial_cache(1)
    for t in range(T):
        stepped, cache = backbone.step(tokens[:, t], backbone.reset(cache, is_first[:, t]))
        assert_close(stepped, deter[:, t])
    starts = torch.tensor([[2, 5, 8, 9]])
    cache = backbone.select(caches, starts, 2)
    assert isinstance(cache, SharedPrefixCache) == (kind not in IGNORES_ATTENTION_KWARGS)
    for offset in (1, 2):
        stepped, cache = backbone.step(tokens[0, starts[0] + offset], cache)
        assert_close(stepped, deter[0, starts[0] + offset])


@torch.no_grad()
def test_window_sees_exactly_context_tokens_through_all_layers(compose):
    backbone = make_backbone(compose(*CASES["window-4"])).eval()
    assert isinstance(backbone, WindowBackbone)
    tokens = torch.randn(9, backbone.width)
    other = tokens.clone()
    other[2] = torch.randn(backbone.width)
    changed = (encode_episode(backbone, tokens) - encode_episode(backbone, other)).abs().amax(
        -1
    ) > 0
    assert changed.tolist() == [False, False, True, True, True, True, False, False, False]
