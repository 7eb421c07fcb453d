"""The laws of llmdreamer/backbones/base.py, for every backbone."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from llmdreamer.backbones import make_backbone
from llmdreamer.backbones.lora import add_lora
from llmdreamer.errors import ConfigError

torch.set_num_threads(1)

CASES = {
    "gpt2-32": ("backbone=gpt2", "algo.world_model.hf_model.seq_len=32"),
    "gpt2-4": ("backbone=gpt2", "algo.world_model.hf_model.seq_len=4"),
    "gpt2-1": ("backbone=gpt2", "algo.world_model.hf_model.seq_len=1"),
    "gru": ("backbone=gru",),
}
B, T = 3, 12
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
    indices = torch.full((B, 1), T - 1)
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


@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_gives_the_same_weights(case, compose):
    weights = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        weights.append(
            torch.cat([p.flatten() for p in make_backbone(compose(*CASES[case])).parameters()])
        )
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


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


# --- LoRA ------------------------------------------------------------------------------------


@torch.no_grad()
def test_adapters_start_as_the_identity(compose):
    cfg = compose("backbone=gpt2")
    torch.manual_seed(0)
    backbone = make_backbone(cfg).eval()
    tokens = torch.randn(5, backbone.width)
    before = encode(backbone, tokens)
    add_lora(backbone.model, cfg.lora, ["c_attn"])
    close(encode(backbone.eval(), tokens), before)


def test_with_adapters_only_adapters_train(compose):
    backbone = make_backbone(compose("backbone=gpt2", "peft=true"))
    training = [name for name, p in backbone.named_parameters() if p.requires_grad]
    # A and B of one layer in each of two blocks.
    assert len(training) == 4 and all(".lora_" in name for name in training)


def test_adapters_without_a_layer_are_refused_with_the_layers_there_are(compose):
    cfg = compose("backbone=gpt2", "peft=true", "lora.target_modules=[q_proj]")
    with pytest.raises(ConfigError, match=r"q_proj.*c_attn, c_fc, c_proj") as error:
        make_backbone(cfg)
    assert "\n" not in str(error.value)


# --- Checkpoints -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A GPT-2 with a language head, as `save_pretrained` leaves it: 32 wide, 64 positions."""
    torch.manual_seed(7)
    config = GPT2Config(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    model = GPT2LMHeadModel(config).eval()
    path = tmp_path_factory.mktemp("gpt2")
    model.save_pretrained(path)
    return model, path


@torch.no_grad()
def test_a_checkpoint_computes_what_transformers_computes(saved, compose):
    model, path = saved
    backbone = make_backbone(compose("pretrained=true", f"backbone.path={path}"))
    assert backbone.width == 32
    tokens = torch.randn(1, 9, 32)
    # Even in training: a world model has no use for dropout. Position 0 is what eval begins with.
    expected = model.transformer(inputs_embeds=tokens).last_hidden_state
    close(encode(backbone.eval(), tokens[0]), expected[0])


def test_a_checkpoint_is_loaded_without_dropout(saved, compose):
    backbone = make_backbone(compose("pretrained=true", f"backbone.path={saved[1]}"))
    dropouts = [m.p for m in backbone.modules() if isinstance(m, torch.nn.Dropout)]
    assert set(dropouts) == {0.0}


def test_tokens_are_scaled_to_the_size_of_the_word_embeddings(saved, compose):
    model, path = saved
    backbone = make_backbone(compose("pretrained=true", f"backbone.path={path}"))
    words = model.transformer.wte.weight.detach()
    assert backbone.input_rms == pytest.approx((words**2).mean().sqrt().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/no/such/directory", "no such directory"),
        ("nobody/no-such-model", "hub is unreachable"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_one_line(source, message, compose):
    with pytest.raises(ConfigError, match=message) as error:
        make_backbone(compose("pretrained=true", f"backbone.path={source}"))
    assert source in str(error.value) and "\n" not in str(error.value)


def test_a_checkpoint_of_another_architecture_is_one_line(tmp_path, compose):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="is a bert checkpoint, not gpt2") as error:
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))
    assert "\n" not in str(error.value)


def test_a_directory_without_a_checkpoint_is_one_line(tmp_path, compose):
    with pytest.raises(ConfigError) as error:
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_truncated_checkpoint_is_one_line(saved, tmp_path, compose):
    saved[0].save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ConfigError) as error:
        make_backbone(compose("pretrained=true", f"backbone.path={tmp_path}"))
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_size_xs_has_no_published_checkpoint(compose):
    with pytest.raises(ConfigError, match="size XS has none"):
        make_backbone(compose("pretrained=true"))


def test_a_context_longer_than_the_table_of_positions_is_refused(compose):
    with pytest.raises(ConfigError, match="seq_len=129: this GPT-2 has 128 positions"):
        make_backbone(compose("algo.world_model.hf_model.seq_len=129"))


def test_a_recurrent_state_size_at_odds_with_the_backbone_is_refused(compose):
    key = "algo.world_model.recurrent_model.recurrent_state_size"
    with pytest.raises(ConfigError, match=f"{key}=100: .* is 128 wide"):
        make_backbone(compose(f"{key}=100"))
