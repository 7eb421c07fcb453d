"""Updates in bfloat16: matrix products are rounded; sums, weights and optimizer state are not."""

import pytest
import torch

from llmdreamer.agent.agent import Agent
from llmdreamer.nn.layers import MLP, CategoricalHead, TwoHotHead
from llmdreamer.training.optimizer import AgentOptimizer
from llmdreamer.training.step import Learner
from llmdreamer.types import EnvSpec, SequenceBatch

torch.set_num_threads(1)

SPEC = EnvSpec({"state": (4,)}, 2, True)
SMALL = [
    "algo.dense_units=16",
    "algo.horizon=3",
    "algo.per_rank_batch_size=8",
    "algo.per_rank_sequence_length=8",
    "algo.imag_starts=2",
    "algo.world_model.stochastic_size=4",
    "algo.world_model.discrete_size=4",
    "algo.world_model.hf_model.seq_len=8",
    "algo.world_model.kl_free_nats=0",
]


def batch():
    rng = torch.Generator().manual_seed(5)
    shape = (8, 9)
    none = torch.zeros(shape, dtype=torch.bool)
    action = torch.nn.functional.one_hot(torch.randint(2, shape, generator=rng), 2).float()
    state = torch.randn(*shape, 4, generator=rng)
    return SequenceBatch({"state": state}, action, torch.randn(shape, generator=rng), none, none)


@pytest.fixture
def learner(compose):
    def make(*overrides):
        cfg = compose(*SMALL, *overrides)
        torch.manual_seed(0)
        agent = Agent(cfg, SPEC)
        # Heads that start at zero would give the layers before them no gradient.
        for head in (agent.world_model.reward, agent.behavior.critic):
            torch.nn.init.normal_(head.mlp[-1].weight, std=0.1)
        return Learner(agent, AgentOptimizer(agent, cfg.algo.optimizer, 100), cfg.algo)

    return make


def trained(learner):
    """Return the names of the weights whose gradient is not zero."""
    weights = learner.agent.named_parameters()
    return {name for name, p in weights if p.grad is not None and p.grad.any()}


ARMS = {
    **{name: [f"backbone={name}"] for name in ("gru", "gpt2", "smollm2", "qwen3", "pythia")},
    **{name: [f"backbone={name}"] for name in ("mamba", "mamba2")},
    "coupled": ["backbone=gru", "posterior=coupled"],
    "block_gru": ["backbone=block_gru", "backbone.width=64", "posterior=coupled"],
    "lora": ["backbone=gpt2", "peft=true"],
    "window": [
        *("backbone=hf", "backbone.model_type=bloom"),
        "backbone.config={hidden_size:32,n_layer:2,n_head:2}",
    ],
}


@pytest.mark.parametrize("arm", ARMS)
def test_bf16_update_is_near_fp32_and_trains_the_same_weights(arm, learner):
    losses, names = {}, {}
    for precision in ("fp32", "bf16"):
        one = learner(*ARMS[arm], f"precision={precision}")
        torch.manual_seed(1)
        metrics = one.update(batch())
        assert all(value.dtype == torch.float32 for value in metrics.values())
        losses[precision] = metrics["world_model/loss"]
        # Imagination rounds weights without gradient. Later losses must not reuse those.
        names[precision] = trained(one)
        kept = [*one.agent.parameters(), *one.agent.behavior.return_norm.buffers()]
        kept += [
            moment for state in one.optimizer.inner.state.values() for moment in state.values()
        ]
        assert {tensor.dtype for tensor in kept} == {torch.float32}
    assert names["bf16"] == names["fp32"]
    assert losses["bf16"] != losses["fp32"]  # bf16 is really in use
    torch.testing.assert_close(losses["bf16"], losses["fp32"], rtol=0.05, atol=0.05)


@torch.no_grad()
def test_network_outputs_under_autocast_are_float32():
    x = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert MLP(8, 16, 1)(x).dtype == MLP(8, 16, 1, 3)(x).dtype == torch.float32
        log_probs = CategoricalHead(8, 16, 1, (2, 4), 0.01)(x)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(5, 2))


@torch.no_grad()
def test_two_hot_mean_under_autocast_ignores_rounding_of_outer_bins():
    torch.manual_seed(0)
    head = TwoHotHead(8, 16, 1, 255)
    last = head.mlp[-1]
    # Bins beyond 5 are unlikely; bfloat16 cannot represent their logits exactly.
    last.bias.copy_(-4.013 * torch.linspace(-20, 20, 255).abs().sub(5).clamp(min=0).sqrt())
    torch.nn.init.normal_(last.weight, std=0.01)
    x = torch.randn(64, 8)
    plain = head.mean(head(x))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head.mean(head(x))
    scale = plain.abs().mean()
    assert (rounded - plain).abs().max() < 0.1 * scale
