"""Compares the losses with a second implementation in plain NumPy, which loops over single numbers."""

import math

import numpy as np
import pytest
import torch

from llmdreamer.agent.agent import Agent
from llmdreamer.behavior.imagine import Imagined
from llmdreamer.types import EnvSpec, SequenceBatch

torch.set_num_threads(1)
N, H, B, T, S, K = 3, 4, 2, 6, 4, 5
SPEC = EnvSpec({"state": (3,)}, 2, True)
BINS = np.sign(np.linspace(-20, 20, 255)) * np.expm1(np.abs(np.linspace(-20, 20, 255)))


@pytest.fixture
def agent(compose):
    return make_agent(compose)


def make_agent(compose, *overrides):
    torch.manual_seed(0)
    agent = Agent(
        compose(
            "algo.dense_units=16",
            "algo.world_model.stochastic_size=4",
            "algo.world_model.discrete_size=5",
            "algo.gamma=0.9",
            "algo.lmbda=0.95",
            "algo.actor.unimix=0.01",
            "algo.world_model.reconstruction_weight=2",
            "algo.world_model.continue_weight=3",
            *overrides,
        ),
        SPEC,
    ).double()
    agent.behavior.return_norm.float()  # its buffers stay float32 in training
    # With heads that start at zero, many wrong formulas would agree.
    for head in (agent.world_model.reward, agent.behavior.critic, agent.behavior.slow_critic):
        torch.nn.init.normal_(head.mlp[-1].weight, std=0.3)
    torch.nn.init.normal_(agent.behavior.actor.mlp[-1].weight)
    return agent


def log_softmax(x):
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy_two_hot(logits, target):
    """Return the two-hot cross-entropy of one distribution (255,) against one number."""
    target = min(max(target, BINS[0]), BINS[-1])
    above = min(max(int(np.searchsorted(BINS, target, side="right")), 1), 254)
    share = (target - BINS[above - 1]) / (BINS[above] - BINS[above - 1])
    log_probs = log_softmax(logits)
    return -((1 - share) * log_probs[above - 1] + share * log_probs[above])


def two_hot_means(logits):
    """Return the means of distributions (..., 255), summed exactly."""
    weighted = (np.exp(log_softmax(logits)) * BINS).reshape(-1, 255)
    return np.array([math.fsum(terms) for terms in weighted]).reshape(logits.shape[:-1])


def lambda_returns(reward, value, discount, lambda_):
    """G_t = r + discount * ((1 - lambda) * V_{t+1} + lambda * G_{t+1}), backwards."""
    out = np.zeros_like(reward)
    for n in range(reward.shape[0]):
        carried = value[n, -1]
        for t in reversed(range(reward.shape[1])):
            mixed = (1 - lambda_[n, t]) * value[n, t + 1] + lambda_[n, t] * carried
            carried = reward[n, t] + discount[n, t] * mixed
            out[n, t] = carried
    return out


def numpy(tensor):
    return tensor.detach().numpy()


def test_imagination_loss_matches_numpy(agent):
    behavior = agent.behavior
    features = torch.randn(N, H + 1, agent.world_model.features, dtype=torch.float64)
    action = torch.eye(2, dtype=torch.float64)[torch.randint(2, (N, H))]
    reward = torch.randn(N, H, dtype=torch.float64)
    discount = 0.9 * torch.rand(N, H + 1, dtype=torch.float64)

    logits, slow = (numpy(c(features)) for c in (behavior.critic, behavior.slow_critic))
    value, slow_value = two_hot_means(logits), two_hot_means(slow)
    G = lambda_returns(numpy(reward), value, numpy(discount)[:, 1:], np.full((N, H), 0.95))
    low, high = (0.01 * np.quantile(G, q) for q in (0.05, 0.95))  # from zero, decay 0.99
    scale = max(1.0, high - low)
    raw = numpy(behavior.actor.mlp(features))
    probs = 0.99 * np.exp(log_softmax(raw)) + 0.01 / 2
    expected = 0.0
    for n in range(N):
        reached = 1.0
        for t in range(H):
            reached *= numpy(discount)[n, t]
            chosen = int(numpy(action)[n, t].argmax())
            entropy = -sum(p * math.log(p) for p in probs[n, t])
            advantage = (G[n, t] - value[n, t]) / scale
            actor = -(math.log(probs[n, t, chosen]) * advantage + 3e-4 * entropy)
            critic = cross_entropy_two_hot(logits[n, t], G[n, t])
            critic += cross_entropy_two_hot(logits[n, t], slow_value[n, t])
            expected += reached * (actor + critic) / (N * H)

    loss = behavior.imagination_loss(Imagined(features, action, reward, discount)).loss
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [0, 0.7])
def test_replay_loss_matches_numpy(compose, weight):
    agent = make_agent(compose, f"algo.critic.action_value_loss_weight={weight}")
    behavior = agent.behavior
    assert (behavior.action_value is not None) == (weight > 0)
    features = torch.randn(B, T, agent.world_model.features, dtype=torch.float64)
    reward = torch.randn(B, T, dtype=torch.float64)
    is_first, terminated = torch.zeros(2, B, T, dtype=torch.bool)
    terminated[0, 2] = is_first[0, 3] = is_first[1, 4] = True  # terminated; truncated
    starts = torch.tensor([[1, 5], [0, 2]])
    imagined = torch.randn(B, 2, dtype=torch.float64)

    action = torch.randn(B, T, 2, dtype=torch.float64)
    logits, slow = (numpy(c(features)) for c in (behavior.critic, behavior.slow_critic))
    if weight:
        torch.nn.init.normal_(behavior.action_value.mlp[-1].weight, std=0.3)
        executed = np.clip(numpy(action), -1, 1)
        acted = torch.from_numpy(np.concatenate([numpy(features), executed], -1))
        value_logits = numpy(behavior.action_value(acted))
    bootstrap, slow_value = two_hot_means(logits), two_hot_means(slow)
    for b in range(B):
        bootstrap[b, starts[b].numpy()] = numpy(imagined)[b]
    discount = np.where(numpy(terminated)[:, 1:], 0.0, 0.9)
    # The return of the step before an episode's last one bootstraps there; the last step has no return.
    lambda_ = np.full((B, T - 1), 0.95)
    lambda_[0, 1] = lambda_[1, 2] = 0.0
    G = lambda_returns(numpy(reward)[:, 1:], bootstrap, discount, lambda_)
    expected = 0.0
    for b in range(B):
        for t in range(T - 1):
            if not is_first[b, t + 1]:
                loss = cross_entropy_two_hot(logits[b, t], G[b, t])
                loss += cross_entropy_two_hot(logits[b, t], slow_value[b, t])
                expected += 0.3 * loss / (B * (T - 1))
                if weight:
                    value_loss = cross_entropy_two_hot(value_logits[b, t], G[b, t])
                    expected += weight * value_loss / (B * (T - 1))

    context = (torch.zeros(B, 1, 2), torch.zeros(B, 1), *torch.zeros(2, B, 1, dtype=torch.bool))
    steps = (action, reward, is_first, terminated)
    batch = SequenceBatch({}, *(torch.cat(pair, 1) for pair in zip(context, steps, strict=True)))
    assert behavior.replay_loss(features, batch, starts, imagined).loss.item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("standardize", [False, True])
def test_world_model_loss_matches_numpy(compose, standardize):
    chosen = ["algo.world_model.standardize=true", "algo.world_model.vector_bins=41"]
    world = make_agent(compose, *(chosen if standardize else [])).world_model
    state = torch.randn(B, T + 1, 3, dtype=torch.float64)
    collected = 3 + 2 * np.random.default_rng(0).normal(size=(50, 3))
    world.standardizer.update([{"state": collected}])
    reward = torch.randn(B, T + 1, dtype=torch.float64)
    terminated = torch.rand(B, T + 1) < 0.3
    batch = SequenceBatch(
        {"state": state},
        torch.zeros(B, T + 1, 2, dtype=torch.float64),
        reward,
        torch.zeros(B, T + 1, dtype=torch.bool),
        terminated,
    )
    seen = {}
    outputs = {
        "posterior": world.posterior.mlp,
        "prior": world.prior.mlp,
        "decoder": world.decoder.vector.mlp,
        "reward": world.reward,
        "continues": world.continues,
    }
    for name, module in outputs.items():
        module.register_forward_hook(lambda *args, name=name: seen.update({name: numpy(args[2])}))
    loss = world.loss(batch).loss

    def distribution(raw):
        logits = raw.reshape(*raw.shape[:2], S, K)
        return 0.99 * np.exp(log_softmax(logits)) + 0.01 / K

    q, p = distribution(seen["posterior"])[:, 1:], distribution(seen["prior"])
    target_state = np.sign(numpy(state)) * np.log1p(np.abs(numpy(state)))
    if standardize:
        z = (numpy(state) - collected.mean(0)) / collected.std(0)
        target_state = 3 * np.arcsinh(z / 3)
    expected = 0.0
    for b in range(B):
        for t in range(T):
            kl = (q[b, t] * (np.log(q[b, t]) - np.log(p[b, t]))).sum()
            ended = bool(terminated[b, t + 1])
            target = 0.0 if ended else 0.9
            continues = 1 / (1 + math.exp(-seen["continues"][b, t]))
            total = 1.1 * max(1.0, kl)
            total += 2 * ((seen["decoder"][b, t] - target_state[b, t + 1]) ** 2).sum()
            total += cross_entropy_two_hot(seen["reward"][b, t], reward[b, t + 1].item())
            total -= 3 * (target * math.log(continues) + (1 - target) * math.log(1 - continues))
            expected += total / (B * T)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
