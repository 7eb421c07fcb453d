"""One gradient update of the whole agent: which weights move, and that the loss falls."""

from dataclasses import replace

import pytest
import torch

from llmdreamer.agent.agent import Agent
from llmdreamer.training.optimizer import AgentOptimizer
from llmdreamer.training.step import Learner
from llmdreamer.types import EnvSpec, SequenceBatch

torch.set_num_threads(1)

SPEC = EnvSpec({"state": (4,)}, 2, True)
SMALL = [
    "algo.dense_units=16",
    "algo.horizon=3",
    "algo.per_rank_batch_size=4",
    "algo.per_rank_sequence_length=8",
    "algo.imag_starts=2",
    "algo.world_model.stochastic_size=4",
    "algo.world_model.discrete_size=4",
    "algo.world_model.hf_model.seq_len=8",
    "algo.optimizer.warmup=0",
    # Without free nats, so that the prior gets gradient even if it is close.
    "algo.world_model.kl_free_nats=0",
]
ARMS = {
    "reference": ["backbone=gru", "posterior=coupled"],
    "reference-2023": ["algo=dreamer_v3_2023", "backbone=gru", "posterior=coupled"],
    "gru": ["backbone=gru"],
    "gru-action-value": ["backbone=gru", "algo.critic.action_value_loss_weight=1"],
    "scratch": ["backbone=gpt2"],
    "pretrained": ["backbone=gpt2", "pretrained=true"],
    "pretrained-lora": ["backbone=gpt2", "pretrained=true", "peft=true"],
    "random-frozen-lora": ["backbone=gpt2", "peft=true"],
    "smollm2": ["backbone=smollm2"],
    "qwen3": ["backbone=qwen3"],
    "pythia": ["backbone=pythia"],
    "mamba": ["backbone=mamba"],
    "mamba2": ["backbone=mamba2"],
    "mamba2-lora": ["backbone=mamba2", "peft=true"],
    "window": [
        "backbone=hf",
        "backbone.model_type=bloom",
        "backbone.config={hidden_size:32,n_layer:2,n_head:2}",
    ],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel

    path = tmp_path_factory.mktemp("gpt2")
    torch.manual_seed(7)
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


@pytest.fixture
def learner(compose, checkpoint):
    def make(arm, *overrides, seed=0):
        path = [f"backbone.path={checkpoint}"] if "pretrained=true" in ARMS[arm] else []
        cfg = compose(*ARMS[arm], *SMALL, *path, *overrides)
        torch.manual_seed(seed)
        agent = Agent(cfg, SPEC)
        return Learner(agent, AgentOptimizer(agent, cfg.algo.optimizer, 100), cfg.algo)

    return make


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(5)
    shape = (4, 9)
    is_first = torch.zeros(shape, dtype=torch.bool)
    terminated = torch.zeros(shape, dtype=torch.bool)
    is_first[0, 0] = is_first[1, 4] = is_first[2, 6] = True
    terminated[1, 3] = True
    action = torch.randint(2, shape, generator=rng)
    return SequenceBatch(
        {"state": torch.randn(*shape, 4, generator=rng)},
        torch.nn.functional.one_hot(action, 2).float(),
        torch.randn(shape, generator=rng) * ~is_first,
        is_first,
        terminated,
    )


def copy(module):
    return {name: param.detach().clone() for name, param in module.named_parameters()}


def frozen_names(arm, agent):
    """Names of weights that must not train, listed independently of `requires_grad`."""
    frozen = {n for n, _ in agent.named_parameters() if n.startswith("behavior.slow_critic")}
    if arm.endswith("lora"):
        frozen |= {
            n for n, _ in agent.named_parameters() if ".backbone." in n and ".lora_" not in n
        }
    return frozen


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arm", ARMS)
def test_trained_weights_have_gradients_and_frozen_ones_have_none(arm, precision, learner, batch):
    learner = learner(arm, f"precision={precision}")
    agent = learner.agent
    frozen = frozen_names(arm, agent)
    before = copy(agent)
    # Heads and adapters that start at zero pass no gradient on until they have moved.
    for _ in range(4):
        learner.update(batch)
    for name, param in agent.named_parameters():
        if name in frozen:
            assert param.grad is None, name
            if "slow_critic" not in name:
                assert torch.equal(param, before[name]), name
        else:
            assert param.grad is not None, name
            assert param.grad.isfinite().all() and param.grad.abs().sum() > 0, name
            assert not torch.equal(param, before[name]), name


def test_slow_critic_moves_towards_the_critic_by_its_rate(learner, batch):
    learner = learner("gru", "algo.critic.slow_rate=0.25")
    slow = copy(learner.agent.behavior.slow_critic)
    learner.update(batch)
    fast = copy(learner.agent.behavior.critic)
    for name, param in learner.agent.behavior.slow_critic.named_parameters():
        torch.testing.assert_close(param, 0.75 * slow[name] + 0.25 * fast[name])


@pytest.mark.parametrize("arm", ["gru", "scratch"])
def test_learner_overfits_one_batch(arm, learner, batch):
    learner = learner(arm, "algo.optimizer.lr=0.005")
    losses = []
    for _ in range(60):
        losses.append(learner.update(batch)["world_model/reconstruction_loss"].item())
    assert sum(losses[-5:]) / 5 < 0.5 * losses[0], (losses[0], losses[-5:])


# Every backbone, from scratch, and adapters.
SEEDED = [arm for arm in ARMS if not arm.startswith("pretrained") and arm != "mamba2-lora"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("arm", SEEDED)
def test_same_seed_gives_the_same_weights_after_updates(arm, precision, learner, batch):
    def trained(seed, updates):
        one = learner(arm, f"precision={precision}", seed=seed)
        for _ in range(updates):
            one.update(batch)
        return copy(one.agent)

    first, second, other = trained(3, 2), trained(3, 2), trained(4, 0)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_action_value_learns_the_outcome_in_the_step_of_the_action(learner, batch):
    """The second action is rewarded one step later: no other step can predict it."""
    learner = learner(
        "gru-action-value", "algo.gamma=0.01", "algo.optimizer.lr=0.005", "algo.optimizer.anneal=0"
    )
    rng = torch.Generator().manual_seed(0)
    for _ in range(150):
        action = torch.nn.functional.one_hot(torch.randint(2, (4, 9), generator=rng), 2).float()
        reward = torch.zeros(4, 9)
        reward[:, 1:] = action[:, :-1, 1] * ~batch.is_first[:, 1:]
        learner.update(replace(batch, action=action, reward=reward))
    world_model, action_value = learner.agent.world_model, learner.agent.behavior.action_value
    features = world_model.feature(world_model.observe(batch)[1].latent).flatten(0, 1)
    first, second = (
        action_value.mean(action_value(torch.cat([features, one.expand(len(features), 2)], -1)))
        .mean()
        .item()
        for one in torch.eye(2)
    )
    assert abs(first) < 0.2 and abs(second - 1) < 0.2, (first, second)
