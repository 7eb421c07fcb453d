"""Compares LaProp, Adam, clipping, schedule and groups with plain NumPy and values computed by hand."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from llmdreamer.training.optimizer import AgentOptimizer, LaProp, clip_adaptively
from llmdreamer.utils.errors import ConfigError

torch.set_num_threads(1)


def test_laprop_with_clipping_matches_numpy():
    rng = np.random.default_rng(0)
    # Large, small, and initialized to zero, as output layers are.
    values = [rng.normal(size=(3, 4)), 0.01 * rng.normal(size=5), np.zeros(2)]
    params = [nn.Parameter(torch.tensor(value)) for value in values]
    optimizer = LaProp(params, lr=0.1, betas=(0.9, 0.99), eps=1e-20, agc=0.3)
    squares = [np.zeros_like(value) for value in values]
    momenta = [np.zeros_like(value) for value in values]
    for t in range(1, 6):
        for i, param in enumerate(params):
            gradient = rng.normal(size=values[i].shape)
            param.grad = torch.tensor(gradient)
            limit = 0.3 * max(np.linalg.norm(values[i]), 1e-3)
            gradient = gradient * min(1.0, limit / np.linalg.norm(gradient))
            squares[i] = 0.99 * squares[i] + 0.01 * gradient**2
            normed = gradient / (np.sqrt(squares[i] / (1 - 0.99**t)) + 1e-20)
            momenta[i] = 0.9 * momenta[i] + 0.1 * normed
            values[i] = values[i] - 0.1 * momenta[i] / (1 - 0.9**t)
        optimizer.step()
    for param, value in zip(params, values, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), value, rtol=1e-6, atol=1e-9)


def test_laprop_first_step_has_the_size_of_the_learning_rate():
    param = nn.Parameter(torch.tensor([5.0, 5.0]))
    optimizer = LaProp([param], lr=0.1)
    param.grad = torch.tensor([1e-6, -1e6])
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.tensor([4.9, 5.1]))


@pytest.mark.parametrize("gradient", [1e-19, 1e-18, 2e-18, 1e-17])
def test_laprop_step_of_tiny_gradients_stays_within_the_learning_rate(gradient):
    torch.set_flush_denormal(True)  # as in training: the squares of these gradients are zero
    try:
        param = nn.Parameter(torch.tensor([5.0], dtype=torch.float32))
        optimizer = LaProp([param], lr=0.1, betas=(0.9, 0.999))
        for _ in range(3):
            before = param.item()
            param.grad = torch.tensor([gradient])
            optimizer.step()
            assert 0 <= before - param.item() < 0.1001
    finally:
        torch.set_flush_denormal(False)


def test_clip_adaptively_with_tiny_limit_keeps_zero_gradient_at_zero():
    (clipped,) = clip_adaptively([torch.ones(2)], [torch.zeros(2)], 1e-300)
    assert clipped.tolist() == [0, 0]


class ToyModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.world_model = nn.Module()
        self.world_model.backbone = nn.Module()
        self.world_model.backbone.weight = nn.Parameter(torch.ones(2))
        self.world_model.backbone.lora_A = nn.Module()
        self.world_model.backbone.lora_A.weight = nn.Parameter(torch.ones(2))
        self.head = nn.Linear(2, 1)
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def loss(self):
        return sum((param**2).sum() for param in self.parameters())


@pytest.fixture
def make(compose):
    def optimizer(toy, *overrides, total=10):
        keys = [f"algo.optimizer.{override}" for override in overrides]
        return AgentOptimizer(toy, compose(*keys).algo.optimizer, total)

    return optimizer


def rates(optimizer):
    return {group["name"]: group["lr"] for group in optimizer.inner.param_groups}


def test_backbone_adapters_and_rest_have_separate_learning_rates(make):
    toy = ToyModel()
    optimizer = make(toy, "lr=0.1", "backbone_lr=0.01", "lora_lr=0.03", "warmup=0")
    optimizer.step(toy.loss())
    assert rates(optimizer) == pytest.approx({"backbone": 0.01, "lora": 0.03, "rest": 0.1})
    # LaProp's first step has the size of the learning rate.
    assert toy.world_model.backbone.weight.tolist() == pytest.approx([0.99, 0.99])
    assert toy.world_model.backbone.lora_A.weight.tolist() == pytest.approx([0.97, 0.97])
    assert toy.frozen.tolist() == [1.0, 1.0]


def test_actor_and_critic_have_separate_learning_rates(make):
    agent = ToyAgent()
    optimizer = make(agent, "lr=0.1", "actor_lr=0.01", "critic_lr=0.03", "warmup=0")
    optimizer.step(agent.loss([[[1.0, 1.0]]] * 4))
    expected = {"backbone": 0.1, "rest": 0.1, "actor": 0.01, "critic": 0.03}
    assert rates(optimizer) == pytest.approx(expected)


def test_learning_rate_not_given_is_that_of_the_rest(make):
    toy = ToyModel()
    optimizer = make(toy, "lr=0.1", "warmup=0")
    optimizer.step(toy.loss())
    assert rates(optimizer) == pytest.approx({"backbone": 0.1, "lora": 0.1, "rest": 0.1})


def test_learning_rate_warms_up_stays_and_anneals(make):
    toy = ToyModel()
    optimizer = make(toy, "lr=0.1", "warmup=4", "anneal=0.5")
    seen = []
    for _ in range(11):
        optimizer.step(toy.loss())
        seen.append(rates(optimizer)["rest"])
    shares = [0.25, 0.5, 0.75, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0]
    assert seen == pytest.approx([0.1 * share for share in shares])


def test_frozen_backbone_starts_its_own_warmup_when_unfrozen(make):
    toy = ToyModel()
    weight = toy.world_model.backbone.weight
    optimizer = make(toy, "lr=0.1", "backbone_lr=0.01", "warmup=2")
    optimizer.config.freeze_backbone_updates = 3
    seen = []
    for step in range(6):
        optimizer.step(toy.loss())
        seen.append(rates(optimizer))
        assert (weight.tolist() == [1.0, 1.0]) == (step < 3)
    assert [rate["backbone"] for rate in seen] == pytest.approx([0, 0, 0, 0.005, 0.01, 0.01])
    assert [rate["rest"] for rate in seen] == pytest.approx([0.05] + [0.1] * 5)
    assert [rate["lora"] for rate in seen] == pytest.approx([0.05] + [0.1] * 5)


def test_resumed_optimizer_equals_the_uninterrupted_one(make):
    def steps(toy, optimizer, count):
        for _ in range(count):
            optimizer.step(toy.loss())

    torch.manual_seed(0)
    toy = ToyModel()
    optimizer = make(toy, "warmup=4")
    steps(toy, optimizer, 2)
    other = ToyModel()
    other.load_state_dict(toy.state_dict())
    resumed = make(other, "warmup=4")
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(toy, optimizer, 3)
    steps(other, resumed, 3)
    for left, right in zip(toy.parameters(), other.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("kind", ["laprop", "adam"])
def test_resumed_optimizer_uses_the_newly_configured_constants(make, kind):
    adam = [*ADAM, "behavior_eps=1e-4"] if kind == "adam" else []
    optimizer = make(ToyAgent(), *adam, "beta2=0.99")
    other = ["beta2=0.5", "eps=0.25", *(["behavior_eps=0.125"] if adam else ["agc=0.01"])]
    resumed = make(ToyAgent(), *adam, *other)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    groups = {group["name"]: group for group in resumed.inner.param_groups}
    assert {group["betas"] for group in groups.values()} == {(0.9, 0.5)}
    assert groups["rest"]["eps"] == 0.25
    assert groups["actor"]["eps"] == (0.125 if adam else 0.25)
    assert adam or groups["rest"]["agc"] == 0.01


class ToyAgent(nn.Module):
    """A world model of two tensors, an actor and a critic, with a loss of chosen gradients."""

    def __init__(self):
        super().__init__()
        self.world_model = nn.Module()
        self.world_model.backbone = nn.Linear(2, 1, bias=False)
        self.world_model.head = nn.Linear(2, 1, bias=False)
        self.behavior = nn.Module()
        self.behavior.actor = nn.Linear(2, 1, bias=False)
        self.behavior.critic = nn.Linear(2, 1, bias=False)

    def loss(self, gradients):
        return sum(
            (param * torch.tensor(gradient)).sum()
            for param, gradient in zip(self.parameters(), gradients, strict=True)
        )


ADAM = ("kind=adam", "agc=null", "warmup=0", "beta1=0.9", "beta2=0.99")


def test_adam_with_clipped_norms_matches_numpy(make):
    rng = np.random.default_rng(0)
    agent = ToyAgent()
    rates = ("lr=0.1", "backbone_lr=0.02", "actor_lr=0.03", "critic_lr=0.04")
    rates += ("eps=0.01", "behavior_eps=0.5")
    optimizer = make(agent, *ADAM, *rates, "clip=2.0", "behavior_clip=0.5")
    values = [param.detach().numpy().astype(float) for param in agent.parameters()]
    first, second = ([np.zeros((1, 2)) for _ in values] for _ in range(2))
    for t in range(1, 5):
        # The gradients of the first update are too small to be clipped.
        gradients = [(0.1 if t == 1 else 3.0) * rng.normal(size=(1, 2)) for _ in values]
        norms = optimizer.step(agent.loss([gradient.tolist() for gradient in gradients]))
        world = math.hypot(*(float(x) for i in (0, 1) for x in gradients[i][0]))
        assert norms["optimizer/critic_gradient_norm"].item() == pytest.approx(
            np.linalg.norm(gradients[3]), rel=1e-5
        )
        for i in range(4):
            norm, largest = (world, 2.0) if i < 2 else (np.linalg.norm(gradients[i]), 0.5)
            gradient = gradients[i] * min(1.0, largest / norm)
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.99 * second[i] + 0.01 * gradient**2
            root = np.sqrt(second[i] / (1 - 0.99**t)) + (0.01 if i < 2 else 0.5)
            rate = (0.02, 0.1, 0.03, 0.04)[i]
            values[i] -= rate * first[i] / (1 - 0.9**t) / root
    for param, value in zip(agent.parameters(), values, strict=True):
        np.testing.assert_allclose(param.detach().numpy(), value, rtol=2e-5, atol=1e-6)


def test_adam_without_clip_norms_does_not_clip(make):
    agent = ToyAgent()
    rates = ("lr=0.1", "critic_lr=0.1", "eps=1.0")
    optimizer = make(agent, *ADAM, *rates, "clip=null", "behavior_clip=null")
    before = agent.behavior.critic.weight.detach().clone()
    optimizer.step(agent.loss([[[9.0, 0.0]]] * 4))
    # Adam's first step is rate * g / (|g| + eps).
    moved = before - agent.behavior.critic.weight.detach()
    torch.testing.assert_close(moved, torch.tensor([[0.09, 0.0]]), rtol=1e-4, atol=1e-7)


def test_checkpoint_of_another_optimizer_kind_is_refused(make):
    adam, laprop = make(ToyAgent(), *ADAM), make(ToyAgent())
    with pytest.raises(ConfigError, match=r"algo.optimizer.kind=laprop: the checkpoint is of an"):
        laprop.load_state_dict(adam.state_dict())
    adam.load_state_dict(copy.deepcopy(adam.state_dict()))
