"""The whole loss of the 2023 recipe, compared with NumPy code that follows SheepRL's dreamer_v3.py.

Networks are ours, so that NumPy gets the same outputs. Everything after them is written again: targets,
divergences, returns, weights, and both behavior losses.
"""

import numpy as np
import pytest
import torch

from llmdreamer.agent.agent import Agent
from llmdreamer.training import step
from llmdreamer.training.optimizer import AgentOptimizer
from llmdreamer.training.step import Learner
from llmdreamer.types import EnvSpec, SequenceBatch

torch.set_num_threads(1)
B, T = 4, 8
OVERRIDES = [
    *("algo=dreamer_v3_2023", "recipe=dreamer_v3", "backbone=gru", "backbone.width=32"),
    *("posterior=coupled", "algo.dense_units=32", "algo.horizon=6", "algo.imag_starts=null"),
    *(f"algo.per_rank_batch_size={B}", f"algo.per_rank_sequence_length={T}"),
]
BINS = np.linspace(-20, 20, 255)
GAMMA, LAMBDA, ENTROPY, FREE_NATS = 0.997, 0.95, 3e-4, 1.0


def symlog(x):
    return np.sign(x) * np.log1p(np.abs(x))


def log_softmax(logits):
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def number(logits):
    """SheepRL's `TwoHotEncodingDistribution.mean`."""
    mean = (np.exp(log_softmax(logits)) * BINS).sum(-1)
    return np.sign(mean) * np.expm1(np.abs(mean))


def two_hot_loss(logits, target):
    position = np.clip((symlog(target) + 20) / (BINS[1] - BINS[0]), 0, len(BINS) - 1)
    below = np.minimum(position.astype(int), len(BINS) - 2)
    share = position - below
    log_probs = log_softmax(logits)
    left = np.take_along_axis(log_probs, below[..., None], -1)[..., 0]
    right = np.take_along_axis(log_probs, below[..., None] + 1, -1)[..., 0]
    return -((1 - share) * left + share * right)


def world_model_loss(outputs, batch):
    """SheepRL's `reconstruction_loss`: negative log-likelihoods, and a balanced KL with free nats."""
    posterior, prior = outputs["posterior"], outputs["prior"]
    kl = (np.exp(posterior) * (posterior - prior)).sum((-1, -2))
    free = np.maximum(kl, FREE_NATS).mean()
    observation = ((outputs["decoded"] - symlog(batch["state"])) ** 2).sum(-1).mean()
    reward = two_hot_loss(outputs["reward"], batch["reward"]).mean()
    logits, goes_on = outputs["continue"], 1.0 - batch["terminated"]
    entropy = np.logaddexp(0, logits) - goes_on * logits
    return observation + reward + entropy.mean() + 0.5 * free + 0.1 * free


def behavior_losses(outputs, terminated):
    """SheepRL's `train`, from `predicted_values` on. Time is the second axis here, the first there."""
    values, rewards = number(outputs["critic"]), number(outputs["imagined_reward"])
    continues = (outputs["imagined_continue"] > 0).astype(float)
    continues[:, 0] = 1.0 - terminated  # true_continue
    returns, following = [], values[:, -1]
    for t in reversed(range(1, values.shape[1])):
        interim = rewards[:, t] + GAMMA * continues[:, t] * values[:, t] * (1 - LAMBDA)
        following = interim + GAMMA * continues[:, t] * LAMBDA * following
        returns.insert(0, following)
    returns = np.stack(returns, 1)
    weight = np.cumprod(continues * GAMMA, 1)[:, :-1] / GAMMA
    low, high = (0.01 * np.quantile(returns, share) for share in (0.05, 0.95))
    scale = max(1.0, high - low)
    advantage = (returns - low) / scale - (values[:, :-1] - low) / scale
    log_probs = outputs["policy"]
    chosen = (log_probs * outputs["action"]).sum(-1)
    entropy = -(np.exp(log_probs) * log_probs).sum(-1)
    policy_loss = -(weight * (chosen * advantage + ENTROPY * entropy)).mean()
    logits = outputs["critic"][:, :-1]
    slow = number(outputs["slow_critic"])[:, :-1]
    value_loss = two_hot_loss(logits, returns) + two_hot_loss(logits, slow)
    return policy_loss, (weight * value_loss).mean()


def random_batch():
    rng = torch.Generator().manual_seed(3)
    action = torch.nn.functional.one_hot(torch.randint(2, (B, T + 1), generator=rng), 2).float()
    is_first = torch.rand(B, T + 1, generator=rng) < 0.3
    terminated = torch.zeros(B, T + 1, dtype=torch.bool)
    terminated[:, :-1] = is_first[:, 1:]
    state = 3 * torch.randn(B, T + 1, 4, generator=rng)
    reward = 4 * torch.randn(B, T + 1, generator=rng)
    return SequenceBatch({"state": state}, action, reward, is_first, terminated)


def make_learner(compose):
    cfg = compose(*OVERRIDES)
    torch.manual_seed(0)
    agent = Agent(cfg, EnvSpec({"state": (4,)}, 2, True))
    with torch.no_grad():
        for weight in agent.parameters():  # heads start at zero: give them something to predict
            weight.add_(0.1 * torch.randn_like(weight))
    return Learner(agent, AgentOptimizer(agent, cfg.algo.optimizer, 100), cfg.algo)


@pytest.mark.parametrize("seed", range(3))
def test_whole_loss_of_2023_matches_formulas_of_sheeprl(seed, compose, monkeypatch):
    learner, batch = make_learner(compose), random_batch()
    world, behavior = learner.agent.world_model, learner.agent.behavior
    assert (learner.algo.gamma, learner.algo.lmbda) == (GAMMA, LAMBDA)
    recorded = {}

    def record(module, name):
        inner = getattr(module, name)

        def recording(*args, **kwargs):
            recorded[name] = result = inner(*args, **kwargs)
            return result

        monkeypatch.setattr(module, name, recording)

    record(step, "imagine")
    record(world, "observe")
    torch.manual_seed(seed)
    loss, metrics = learner.loss(batch)
    with torch.no_grad():
        posterior, observed = recorded["observe"]
        imagined = recorded["imagine"]
        features = world.feature(observed.latent)
        states = world.feature(imagined.features)
        outputs = {
            "posterior": posterior,
            "prior": world.prior(observed.latent.deter),
            "decoded": world.decoder.predict(features)[0]["state"],
            "reward": world.reward(features),
            "continue": world.continues(features),
            "imagined_reward": world.reward(states),
            "imagined_continue": world.continues(states),
            "critic": behavior.critic(states),
            "slow_critic": behavior.slow_critic(states),
            "policy": behavior.actor(states[:, :-1]).log_probs,
            "action": imagined.action,
        }
    outputs = {name: value.detach().double().numpy() for name, value in outputs.items()}
    data = {
        "state": batch.observations["state"][:, 1:].numpy(),
        "reward": batch.reward[:, 1:].numpy(),
        "terminated": batch.terminated[:, 1:].numpy().astype(float),
    }
    terminated = data["terminated"].reshape(-1)  # imagination starts at every time step
    policy_loss, value_loss = behavior_losses(outputs, terminated)
    assert metrics["behavior/actor_loss"].item() == pytest.approx(policy_loss, rel=1e-4)
    assert metrics["behavior/critic_loss"].item() == pytest.approx(value_loss, rel=1e-4)
    expected = world_model_loss(outputs, data) + policy_loss + value_loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    # What the recipe of 2025 does otherwise has to matter here.
    assert 0 < terminated.mean() < 1
    assert 0.1 < (outputs["imagined_continue"] > 0).mean() < 1
