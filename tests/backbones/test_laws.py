"""The laws of llmdreamer/backbones/base.py, for every backbone."""

import pytest
import torch
from transformers import AutoConfig

from llmdreamer.backbones import make_backbone
from llmdreamer.backbones.attention import ROTARY, AttentionBackbone
from llmdreamer.backbones.window import WindowBackbone

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
}
B, T = 3, 12
LAST = torch.full((B, 1), T - 1)
# Episodes begin in the middle, twice in a row, at the last row, and, in row 0, not even at the start.
RESETS = [(0, 5), (1, 0), (1, 3), (1, 4), (2, 0), (2, 11)]


def close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-4, atol=2e-5)


@pytest.fixture(params=CASES)
def backbone(request, compose):
    torch.manual_seed(0)
    return make_backbone(compose(*CASES[request.param])).eval()


@pytest.fixture
def packed(backbone):
    torch.manual_seed(1)
    tokens = torch.randn(B, T, backbone.width)
    is_first = torch.zeros(B, T, dtype=torch.bool)
    for row, t in RESETS:
        is_first[row, t] = True
    return tokens, is_first


def encode(backbone, tokens):
    """One episode alone, (T, D) -> (T, D)."""
    none = torch.zeros(1, len(tokens), dtype=torch.bool)
    return backbone.observe(tokens.unsqueeze(0), none)[0][0]


def episode_start(is_first, row, t):
    return max([0, *[s for s in range(t + 1) if is_first[row, s]]])


@torch.no_grad()
def test_a_packed_sequence_gives_what_each_episode_gives_alone(backbone, packed):
    tokens, is_first = packed
    deter, _ = backbone.observe(tokens, is_first)
    assert deter.shape == tokens.shape
    for row in range(B):
        starts = sorted({0, *[t for t in range(T) if is_first[row, t]]})
        for start, end in zip(starts, [*starts[1:], T], strict=True):
            close(deter[row, start:end], encode(backbone, tokens[row, start:end]))


@torch.no_grad()
def test_observe_gives_what_step_gives_token_by_token(backbone, packed):
    tokens, is_first = packed
    deter, _ = backbone.observe(tokens, is_first)
    state = backbone.initial(B)
    for t in range(T):
        stepped, state = backbone.step(tokens[:, t], backbone.reset(state, is_first[:, t]))
        close(stepped, deter[:, t])


@torch.no_grad()
def test_steps_from_a_selected_state_give_what_encoding_its_prefix_anew_gives(backbone, packed):
    tokens, is_first = packed
    _, states = backbone.observe(tokens, is_first)
    indices = torch.tensor([[0, 4, 5, 11], [2, 3, 4, 11], [1, 3, 10, 11]])
    state = backbone.select(states, indices)
    dreamt = torch.randn(indices.numel(), 6, backbone.width)
    steps = []
    for t in range(6):
        deter, state = backbone.step(dreamt[:, t], state)
        steps.append(deter)
    for n, (row, t) in enumerate((r, int(t)) for r in range(B) for t in indices[r]):
        prefix = tokens[row, episode_start(is_first, row, t) : t + 1]
        anew = encode(backbone, torch.cat([prefix, dreamt[n]]))
        close(torch.stack(steps, 1)[n], anew[len(prefix) :])


@torch.no_grad()
def test_selecting_leaves_the_observed_states_as_they_were(backbone, packed):
    tokens, is_first = packed
    _, states = backbone.observe(tokens, is_first)
    indices = LAST
    token = torch.randn(B, backbone.width)
    first, _ = backbone.step(token, backbone.select(states, indices))
    second, _ = backbone.step(token, backbone.select(states, indices))
    assert torch.equal(first, second)


@torch.no_grad()
def test_a_reset_empties_the_masked_streams_only(backbone, packed):
    tokens, _ = packed
    state = backbone.initial(B)
    for t in range(3):
        deter, state = backbone.step(tokens[:, t], state)
    state = backbone.reset(state, torch.tensor([False, True, False]))
    deter, _ = backbone.step(tokens[:, 3], state)
    close(deter[1], encode(backbone, tokens[1, 3:4])[0])
    close(deter[2], encode(backbone, tokens[2, :4])[3])


@torch.no_grad()
def test_a_state_survives_being_written_down(backbone, packed):
    tokens, _ = packed
    state = backbone.initial(B)
    for t in range(5):
        _, state = backbone.step(tokens[:, t], state)
    saved = {key: value.clone() for key, value in backbone.state_dict_of(state).items()}
    assert all(isinstance(value, torch.Tensor) for value in saved.values())
    going_on, _ = backbone.step(tokens[:, 5], state)
    resumed, _ = backbone.step(tokens[:, 5], backbone.state_from_dict(saved))
    assert torch.equal(going_on, resumed)


def test_an_empty_memory_survives_being_written_down(backbone):
    state = backbone.state_from_dict(backbone.state_dict_of(backbone.initial(2)))
    token = torch.randn(2, backbone.width)
    assert torch.equal(backbone.step(token, state)[0], backbone.step(token, backbone.initial(2))[0])


@torch.no_grad()
def test_a_policy_outlives_the_table_of_positions(backbone):
    long = 150  # XS has 128 positions
    tokens = torch.randn(1, long, backbone.width)
    deter = encode(backbone, tokens[0])
    state = backbone.initial(1)
    for t in range(long):
        stepped, state = backbone.step(tokens[:, t], state)
        close(stepped[0], deter[t])


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


@torch.no_grad()
@pytest.mark.parametrize("more", ["peft=false", "peft=true"])
@pytest.mark.parametrize("name", ["gpt2-4", "smollm2-4", "mamba", "mamba2"])
def test_weights_survive_being_written_down(name, more, compose, tmp_path):
    cfg = compose(*CASES[name], more)
    tokens = torch.randn(5, 128)
    one, other = make_backbone(cfg).eval(), make_backbone(cfg).eval()
    assert not torch.equal(encode(one, tokens), encode(other, tokens))
    torch.save(one.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(encode(one, tokens), encode(other, tokens))


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


def test_in_training_every_position_is_used(compose):
    backbone = make_backbone(compose(*CASES["gpt2-4"])).train()
    torch.manual_seed(0)
    deter, _ = backbone.observe(torch.randn(512, 4, 128), torch.zeros(512, 4, dtype=torch.bool))
    deter.square().sum().backward()
    assert (backbone.model.wpe.weight.grad.norm(dim=1) > 0).all()


@torch.no_grad()
def test_under_autocast_acting_stays_near_training(backbone, packed):
    tokens, is_first = packed
    with torch.autocast("cpu", torch.bfloat16):
        deter, states = backbone.observe(tokens, is_first)
        state = backbone.initial(B)
        for t in range(T):
            stepped, state = backbone.step(tokens[:, t], backbone.reset(state, is_first[:, t]))
            assert (stepped - deter[:, t]).abs().max() < 0.02 * deter.abs().max()
        selected = backbone.select(states, LAST)
        token = torch.randn(B, backbone.width)
        left, right = backbone.step(token, state)[0], backbone.step(token, selected)[0]
    assert (left - right).abs().max() < 0.02 * deter.abs().max()


def test_a_gradient_reaches_every_token_and_none_from_another_episode(backbone, packed):
    tokens, is_first = packed
    tokens.requires_grad_()
    deter, states = backbone.observe(tokens, is_first)
    # Row 1's third episode begins at 4.
    deter[1, 4:].pow(2).sum().backward()
    reached = tokens.grad.abs().sum(-1) > 0
    assert reached[1, 4:].all() and reached.sum() == T - 4
    # What is dreamt on from there has a gradient only if rows may be observed by such steps.
    selected = backbone.select(states, LAST)
    assert not any(part.requires_grad for part in backbone.state_dict_of(selected).values())
    _, state = backbone.step(torch.randn(B, backbone.width), selected)
    parts = backbone.state_dict_of(state).values()
    assert any(part.requires_grad for part in parts) == backbone.recurrent


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
def test_every_architecture_trusted_with_our_mask_keeps_the_laws(kind, compose):
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
    deter, _ = backbone.observe(tokens, is_first)
    close(deter[0, 5:], encode(backbone, tokens[0, 5:]))
    state = backbone.initial(1)
    for t in range(T):
        stepped, state = backbone.step(tokens[:, t], backbone.reset(state, is_first[:, t]))
        close(stepped, deter[:, t])


@torch.no_grad()
def test_a_window_reaches_back_exactly_its_context_through_all_layers(compose):
    backbone = make_backbone(compose(*CASES["window-4"])).eval()
    assert isinstance(backbone, WindowBackbone)
    tokens = torch.randn(9, backbone.width)
    other = tokens.clone()
    other[2] = torch.randn(backbone.width)
    changed = (encode(backbone, tokens) - encode(backbone, other)).abs().amax(-1) > 0
    assert changed.tolist() == [False, False, True, True, True, True, False, False, False]
