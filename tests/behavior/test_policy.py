"""Compares policies with torch.distributions and with values computed by hand."""

import math

import pytest
import torch
from torch.distributions import Categorical, Normal

from llmdreamer.behavior.policy import Actor, DiscretePolicy, NormalPolicy
from llmdreamer.types import EnvSpec

close = torch.testing.assert_close
MEAN, STD = torch.tensor([[0.5, -0.9], [0.0, 0.2]]), torch.tensor([[0.1, 1.0], [0.3, 0.7]])
CHOICES = (2, 3)
LOGITS = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def normal() -> tuple[NormalPolicy, Normal]:
    return NormalPolicy(MEAN, STD), Normal(MEAN, STD)


def choices() -> tuple[DiscretePolicy, list[Categorical]]:
    logits = LOGITS.split(CHOICES, -1)
    log_probs = torch.cat([choice.log_softmax(-1) for choice in logits], -1)
    return DiscretePolicy(log_probs, CHOICES), [Categorical(logits=choice) for choice in logits]


def test_normal_policy_matches_torch_summed_over_the_action():
    policy, reference = normal()
    action = torch.tensor([[1.7, -0.3], [-2.0, 0.2]])  # also beyond the bounds, as samples may be
    close(policy.log_prob(action), reference.log_prob(action).sum(-1))
    close(policy.entropy(), reference.entropy().sum(-1))
    close(policy.mode(), reference.mode)


def test_normal_policy_log_prob_matches_hand_computed_density():
    policy = NormalPolicy(torch.tensor([0.0]), torch.tensor([0.5]))
    # exp(-(1/0.5)²/2) / (0.5 sqrt(2 pi)) = 0.135335 / 1.253314
    close(policy.log_prob(torch.tensor([1.0])), torch.tensor(math.log(0.135335 / 1.253314)))


def test_normal_policy_samples_have_mean_and_std_without_gradient():
    torch.manual_seed(0)
    mean, std = MEAN.clone().requires_grad_(), STD.clone().requires_grad_()
    samples = torch.stack([NormalPolicy(mean, std).sample() for _ in range(4000)])
    close(samples.mean(0), MEAN, atol=0.06, rtol=0)
    close(samples.std(0), STD, atol=0.04, rtol=0)
    assert not samples.requires_grad and (samples.abs() > 1).any()


def test_discrete_policy_of_several_choices_matches_torch():
    policy, reference = choices()
    index = [torch.tensor([0, 1, 1, 0]), torch.tensor([2, 0, 1, 1])]
    one_hot = [torch.nn.functional.one_hot(i, n) for i, n in zip(index, CHOICES, strict=True)]
    action = torch.cat(one_hot, -1).float()
    expected = sum(dist.log_prob(i) for dist, i in zip(reference, index, strict=True))
    close(policy.log_prob(action), expected)
    close(policy.entropy(), reference[0].entropy() + reference[1].entropy())
    modes = torch.cat(
        [
            torch.nn.functional.one_hot(dist.probs.argmax(-1), dist.probs.shape[-1])
            for dist in reference
        ],
        -1,
    )
    close(policy.mode(), modes.float())


def test_discrete_policy_samples_one_class_of_each_choice():
    torch.manual_seed(0)
    policy, reference = choices()
    samples = torch.stack([policy.sample() for _ in range(3000)])
    for choice, dist in zip(samples.split(CHOICES, -1), reference, strict=True):
        assert (choice.sum(-1) == 1).all() and ((choice == 0) | (choice == 1)).all()
        close(choice.mean(0), dist.probs, atol=0.04, rtol=0)


@pytest.fixture
def actor(compose):
    def make(spec, *overrides):
        return Actor(6, spec, compose("algo.dense_units=8", *overrides).algo)

    return make


def test_continuous_actor_outputs_a_bounded_normal(actor):
    actor = actor(EnvSpec({}, 2, False))
    last = actor.mlp[-1]
    torch.nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor([0.5, -20.0, 0.0, 30.0]))  # two means, two deviations
    policy = actor(torch.randn(3, 6))
    close(policy.mean[0], torch.tensor([0.46211716, -1.0]))  # tanh
    # 0.9 * sigmoid(2) + 0.1, and the largest deviation
    close(policy.std[0], torch.tensor([0.9 * 0.88079708 + 0.1, 1.0]))
    with torch.no_grad():
        last.bias[2] = -30.0
    close(actor(torch.randn(3, 6)).std[0, 0], torch.tensor(0.1))


def test_discrete_actor_applies_unimix_to_each_choice(actor):
    actor = actor(EnvSpec({}, 5, True, groups=CHOICES), "algo.actor.unimix=0.3")
    torch.nn.init.zeros_(actor.mlp[-1].weight)
    with torch.no_grad():
        actor.mlp[-1].bias.copy_(torch.tensor([50.0, 0, 0, 0, 50]))
    probs = actor(torch.randn(1, 6)).log_probs[0].exp()
    close(probs, torch.tensor([0.85, 0.15, 0.1, 0.1, 0.8]))


def test_actor_at_initialization_hardly_depends_on_the_feature(actor):
    features = 10 * torch.randn(50, 6)
    discrete = actor(EnvSpec({}, 5, True, groups=CHOICES))(features)
    assert (discrete.entropy() > math.log(6) - 0.01).all()
    assert (actor(EnvSpec({}, 2, False))(features).mean.abs() < 0.1).all()
