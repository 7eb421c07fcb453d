"""The laws of llmdreamer/testing/backbone_laws.py for every backbone, and what only some keep."""

import pytest
import torch
from transformers import AutoConfig

from llmdreamer.backbones import attention, make_backbone
from llmdreamer.backbones.attention import AttentionBackbone, RingKVCache
from llmdreamer.backbones.shared_prefix import SharedPrefixCache
from llmdreamer.backbones.window import WindowBackbone
from llmdreamer.config.catalog import DEAF, ROTARY
from llmdreamer.testing.backbone_laws import LAWS, T, close, encode

torch.set_num_threads(1)


def case(name, context, *more):
    return (f"backbone={name}", f"algo.world_model.hf_model.seq_len={context}", *more)


# OPT counts its positions from the mask, so no mask of ours may be given to it: the generic path.
OPT = (
    "backbone.model_type=opt",
    "backbone.config={hidden_size:32,word_embed_proj_dim:32,num_hidden_layers:2,"
    "num_attention_heads:2,ffn_dim:64}",
)
CASES = {
    "gpt2-32": case("gpt2", 32),
    "gpt2-4": case("gpt2", 4),
    "gpt2-1": case("gpt2", 1),
    "smollm2-32": case("smollm2", 32),
    "smollm2-4": case("smollm2", 4),
    "qwen3-4": case("qwen3", 4),
    "pythia-4": case("pythia", 4),
    "mamba": case("mamba", 4),
    "mamba2": case("mamba2", 4),
    "window-32": case("hf", 32, *OPT),
    "window-4": case("hf", 4, *OPT),
    "window-1": case("hf", 1, *OPT),
    "gru": case("gru", 4),
    "block_gru": case("block_gru", 4, "backbone.width=64"),
}


@pytest.fixture
def sharing(monkeypatch):
    """Dreams share their past however few they are: from how many on that is faster, benchmarks say."""
    monkeypatch.setattr(attention, "SHARED_PREFIX_MIN_BYTES", 0)


@pytest.fixture(params=CASES)
def backbone(request, compose):
    torch.manual_seed(0)
    return make_backbone(compose(*CASES[request.param])).eval()


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_every_backbone_keeps_the_law_that(law, backbone):
    law(backbone)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", ["gpt2", "smollm2", "qwen3", "pythia"])
def test_with_dreams_that_share_their_past_it_keeps_the_law_that(law, name, compose, sharing):
    torch.manual_seed(0)
    law(make_backbone(compose(*case(name, 16))).eval())


@torch.no_grad()
@pytest.mark.parametrize("adapted", ["peft=true", "peft=false"])
@pytest.mark.parametrize("name", ["gpt2", "smollm2"])
def test_dreams_are_the_same_whether_they_share_their_past(name, adapted, compose, monkeypatch):
    torch.manual_seed(0)
    backbone = make_backbone(compose(*case(name, 8), adapted)).eval()
    tokens = torch.randn(3, 20, backbone.width)
    is_first = torch.zeros(3, 20, dtype=torch.bool)
    is_first[0, 0] = is_first[1, 9] = is_first[2, 19] = True
    _, caches = backbone.observe(tokens, is_first)
    starts = torch.tensor([[0, 7, 12], [8, 9, 10], [1, 18, 19]])
    dreamt = torch.randn(4, 9, backbone.width)
    found = []
    for worth, kind in ((1 << 40, RingKVCache), (0, SharedPrefixCache)):
        monkeypatch.setattr(attention, "SHARED_PREFIX_MIN_BYTES", worth)
        cache = backbone.select(caches, starts, len(dreamt))
        assert isinstance(cache, kind)
        for token in dreamt:
            deter, cache = backbone.step(token, cache)
            found.append(deter)
    for copied, shared in zip(found[:4], found[4:], strict=True):
        close(shared, copied)


@torch.no_grad()
def test_a_past_is_shared_where_it_pays(compose):
    backbone = make_backbone(compose(*case("gpt2", 32))).eval()
    _, caches = backbone.observe(torch.randn(16, 32, 128), torch.zeros(16, 32, dtype=torch.bool))

    def chosen(starts, steps):
        return type(backbone.select(caches, torch.arange(starts).expand(16, -1), steps))

    assert chosen(8, 15) is SharedPrefixCache  # the default run's
    assert chosen(4, 15) is RingKVCache  # two megabytes: in the cache
    assert chosen(8, 17) is RingKVCache  # of what is read, most is its own
    assert chosen(8, None) is RingKVCache  # nobody knows for how long


@pytest.mark.parametrize("name", CASES)
def test_the_same_seed_gives_the_same_weights(name, compose):
    weights = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        weights.append(
            torch.cat([p.flatten() for p in make_backbone(compose(*CASES[name])).parameters()])
        )
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


ALL = ("gpt2-4", "smollm2-4", "qwen3-4", "pythia-4", "mamba", "mamba2", "window-4")
ADAPTED = {name: ["peft=true"] for name in ALL}
ADAPTED["window-4"].append("lora.target_modules=[q_proj,fc1]")


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "more"),
    [*((name, []) for name in (*ALL, "gru", "block_gru")), *ADAPTED.items()],
    ids=lambda value: value if isinstance(value, str) else "adapted" if value else "plain",
)
def test_weights_survive_being_written_down(name, more, compose, tmp_path):
    cfg = compose(*CASES[name], *more)
    one, other = make_backbone(cfg).eval(), make_backbone(cfg).eval()
    tokens = torch.randn(5, one.width)
    assert not torch.equal(encode(one, tokens), encode(other, tokens))
    torch.save(one.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(encode(one, tokens), encode(other, tokens))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode(one, tokens), encode(other, tokens))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "context"), [("gpt2", 64), ("gpt2", 256), ("smollm2", 256), ("hf", 64)]
)
def test_a_long_context_is_that_of_training_in_acting_and_dreaming(name, context, compose):
    torch.manual_seed(0)
    backbone = make_backbone(compose(*case(name, context, *(OPT if name == "hf" else ())))).eval()
    length = context + 6
    tokens = torch.randn(1, length, backbone.width)
    deter, caches = backbone.observe(tokens, torch.zeros(1, length, dtype=torch.bool))
    cache = backbone.initial_cache(1)
    for t in range(length):
        stepped, cache = backbone.step(tokens[:, t], cache)
        close(stepped[0], deter[0, t])
    # Dreamt on from where memory is not full yet, and full.
    starts = torch.tensor([[context - 3, length - 4]])
    cache = backbone.select(caches, starts)
    for ahead in range(1, 4):
        following = starts[0] + ahead
        stepped, cache = backbone.step(tokens[0, following], cache)
        close(stepped, deter[0, following])


@torch.no_grad()
def test_attention_reaches_back_exactly_its_context(compose):
    backbone = make_backbone(compose(*CASES["gpt2-4"], "backbone=gpt2")).eval()
    # One layer sees four tokens; the second layer would see further through the first.
    backbone.model.h = backbone.model.h[:1]
    tokens = torch.randn(1, 8, backbone.width)
    other = tokens.clone()
    other[0, 2] += 1
    changed = (encode(backbone, tokens[0]) - encode(backbone, other[0])).abs().amax(-1) > 0
    assert changed.tolist() == [False, False, True, True, True, True, False, False]


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "smollm2", "hf"])
def test_a_context_of_one_remembers_nothing(name, compose):
    """So it is the control of a test of memory."""
    backbone = make_backbone(compose(*case(name, 1, *(OPT if name == "hf" else ())))).eval()
    tokens = torch.randn(6, backbone.width)
    other = tokens.clone()
    other[2] += 1
    changed = (encode(backbone, tokens) - encode(backbone, other)).abs().amax(-1) > 0
    assert changed.tolist() == [False, False, True, False, False, False]


def test_in_training_every_position_is_used(compose):
    backbone = make_backbone(compose(*CASES["gpt2-4"])).train()
    torch.manual_seed(0)
    deter, _ = backbone.observe(torch.randn(512, 4, 128), torch.zeros(512, 4, dtype=torch.bool))
    deter.square().sum().backward()
    assert (backbone.model.wpe.weight.grad.norm(dim=1) > 0).all()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("config", ["", "use_bias:true,", "use_conv_bias:false,"])
def test_the_scan_computes_what_transformers_computes(kind, config, compose):
    # Two groups of heads, where the catalogue's shapes have one.
    more = "num_heads:4,head_dim:16,n_groups:2," if kind == "mamba2" else ""
    keys = f"{{{config}{more}hidden_size:32,num_hidden_layers:2,state_size:8}}"
    torch.manual_seed(0)
    backbone = make_backbone(
        compose("backbone=hf", f"backbone.model_type={kind}", f"backbone.config={keys}")
    )
    tokens = torch.randn(2, 40, 32)
    deter, _ = backbone.observe(tokens, torch.zeros(2, 40, dtype=torch.bool))
    theirs = backbone.model(inputs_embeds=tokens, use_cache=False).last_hidden_state
    torch.testing.assert_close(deter, theirs, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", sorted(ROTARY))
def test_every_architecture_trusted_with_our_mask_keeps_the_laws(kind, compose, sharing):
    default = AutoConfig.for_model(kind)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    small |= {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 16}
    known = {*default.to_dict(), *default.attribute_map}
    keys = ",".join(f"{key}:{value}" for key, value in small.items() if key in known)
    torch.manual_seed(0)
    backbone = make_backbone(
        compose(*case("hf", 4, f"backbone.model_type={kind}", f"backbone.config={{{keys}}}"))
    ).eval()
    assert isinstance(backbone, AttentionBackbone)
    tokens = torch.randn(1, T, 32)
    is_first = torch.zeros(1, T, dtype=torch.bool)
    is_first[0, 5] = True
    deter, caches = backbone.observe(tokens, is_first)
    close(deter[0, 5:], encode(backbone, tokens[0, 5:]))
    cache = backbone.initial_cache(1)
    for t in range(T):
        stepped, cache = backbone.step(tokens[:, t], backbone.reset(cache, is_first[:, t]))
        close(stepped, deter[:, t])
    starts = torch.tensor([[2, 5, 8, 9]])
    cache = backbone.select(caches, starts, 2)
    assert isinstance(cache, SharedPrefixCache) == (kind not in DEAF)
    for ahead in (1, 2):
        stepped, cache = backbone.step(tokens[0, starts[0] + ahead], cache)
        close(stepped, deter[0, starts[0] + ahead])


@torch.no_grad()
def test_a_window_reaches_back_exactly_its_context_through_all_layers(compose):
    backbone = make_backbone(compose(*CASES["window-4"])).eval()
    assert isinstance(backbone, WindowBackbone)
    tokens = torch.randn(9, backbone.width)
    other = tokens.clone()
    other[2] = torch.randn(backbone.width)
    changed = (encode(backbone, tokens) - encode(backbone, other)).abs().amax(-1) > 0
    assert changed.tolist() == [False, False, True, True, True, True, False, False, False]
