"""The agent acts on the same latents that its world model was trained on."""

import pytest
import torch

from llmdreamer.agent.agent import Agent
from llmdreamer.nn.functional import mode_one_hot
from llmdreamer.types import EnvSpec, SequenceBatch
from llmdreamer.world_model import model

torch.set_num_threads(1)
SPEC = EnvSpec({"state": (4,)}, 2, True)
N, STEPS = 2, 11


ARMS = {
    "gpt2": ["backbone=gpt2"],
    "smollm2": ["backbone=smollm2"],
    "qwen3": ["backbone=qwen3"],
    "pythia": ["backbone=pythia"],
    "window": [
        *("backbone=hf", "backbone.model_type=opt"),
        "backbone.config={hidden_size:32,word_embed_proj_dim:32,num_hidden_layers:2,"
        "num_attention_heads:2,ffn_dim:64}",
    ],
    "lora": ["backbone=gpt2", "peft=true"],
    "mamba": ["backbone=mamba"],
    "mamba2": ["backbone=mamba2"],
    "gru": ["backbone=gru"],
    "reference": ["backbone=gru", "posterior=coupled"],
}


@pytest.fixture(params=ARMS)
def agent(request, compose):
    torch.manual_seed(0)
    context = "algo.world_model.hf_model.seq_len=4"
    agent = Agent(compose(*ARMS[request.param], context), SPEC).eval()
    for name, param in agent.named_parameters():
        if ".lora_B." in name:  # as if they had been trained
            torch.nn.init.normal_(param, std=0.1)
    return agent


@pytest.fixture
def deters(agent):
    """Collects every `deter` that the agent computes, in order."""
    seen = []
    agent.world_model.deter_norm.register_forward_hook(lambda _, __, output: seen.append(output))
    return seen


@torch.no_grad()
def test_act_step_by_step_computes_the_latents_of_training(agent, deters, monkeypatch):
    monkeypatch.setattr(model, "sample_one_hot", mode_one_hot)
    observations = torch.randn(N, STEPS, 4)
    is_first = torch.zeros(N, STEPS, dtype=torch.bool)
    # Step 0 of a batch is context only; an episode that begins in step 1 is compared whole.
    is_first[:, 0] = is_first[:, 1] = is_first[1, 6] = True
    state, actions, stochs = agent.initial_state(N), [], []
    for t in range(STEPS):
        action, state = agent.act(
            {"state": observations[:, t]}, is_first[:, t], state, explore=False
        )
        actions.append(action)
        stochs.append(state.stoch)
    acted = torch.stack(deters, 1)
    zeros = torch.zeros(N, STEPS)
    batch = SequenceBatch(
        {"state": observations}, torch.stack(actions, 1), zeros, is_first, zeros.bool()
    )
    latent = agent.world_model.observe(batch)[1].latent
    torch.testing.assert_close(latent.deter, acted[:, 1:], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(latent.stoch, torch.stack(stochs, 1)[:, 1:])


@torch.no_grad()
def test_is_first_resets_the_state_of_its_stream_only(agent, deters):
    state = agent.initial_state(N)
    new = torch.tensor([True, True])
    for _ in range(3):
        _, state = agent.act({"state": torch.randn(N, 4)}, new, state, explore=True)
        new = torch.tensor([False, False])
    seen = {"state": torch.randn(N, 4)}
    agent.act(seen, torch.tensor([True, False]), state, explore=False)
    agent.act(seen, torch.tensor([True, True]), agent.initial_state(N), explore=False)
    later, fresh = deters[-2:]
    torch.testing.assert_close(later[0], fresh[0], rtol=1e-4, atol=2e-5)
    assert not torch.allclose(later[1], fresh[1], atol=1e-2)


@torch.no_grad()
def test_first_action_depends_on_the_first_observation(agent):
    new = torch.ones(N, dtype=torch.bool)
    seen = torch.tensor([[5.0, -5, 5, -5], [-5, 5, -5, 5]])
    _, state = agent.act({"state": seen}, new, agent.initial_state(N), explore=False)
    assert not torch.equal(state.stoch[0], state.stoch[1])


@torch.no_grad()
def test_act_without_exploring_is_deterministic(agent):
    new = torch.ones(N, dtype=torch.bool)
    seen = {"state": torch.randn(N, 4)}
    first, _ = agent.act(seen, new, agent.initial_state(N), explore=False)
    second, _ = agent.act(seen, new, agent.initial_state(N), explore=False)
    assert torch.equal(first, second) and (first.sum(-1) == 1).all()
