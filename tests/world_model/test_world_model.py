from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llmdreamer.agent.agent import Agent
from llmdreamer.types import EnvSpec, SequenceBatch
from llmdreamer.utils.errors import ConfigError

B, T, SPEC = 2, 5, EnvSpec({"state": (3,)}, 2, True)
WEIGHTS = [
    "algo.world_model.reconstruction_weight=3",
    "algo.world_model.continue_weight=2",
    "algo.world_model.kl_dynamics_weight=0.5",
]


@pytest.fixture
def world(compose):
    torch.manual_seed(0)
    return (
        Agent(compose(*WEIGHTS, "algo.per_rank_sequence_length=5", "algo.imag_starts=5"), SPEC)
        .eval()
        .world_model
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return SequenceBatch(
        {"state": torch.randn(B, T + 1, 3, generator=generator)},
        F.one_hot(torch.randint(2, (B, T + 1), generator=generator), 2).float(),
        torch.randn(B, T + 1, generator=generator),
        torch.zeros(B, T + 1, dtype=torch.bool),
        torch.zeros(B, T + 1, dtype=torch.bool),
    )


def loss(world, batch):
    torch.manual_seed(1)
    return world.loss(batch)


def observe(world, batch):
    torch.manual_seed(1)
    return world.observe(batch)[1]


def test_context_step_has_no_loss(world, batch):
    other = replace(batch, reward=batch.reward.clone(), terminated=batch.terminated.clone())
    other.reward[:, 0] = 100.0
    other.terminated[:, 0] = True
    torch.testing.assert_close(loss(world, other).loss, loss(world, batch).loss)


def test_context_step_enters_the_first_token_unless_an_episode_begins(world, batch):
    other = replace(batch, action=batch.action.clone())
    other.action[:, 0] = 1 - other.action[:, 0]
    assert not torch.equal(observe(world, other).latent.deter, observe(world, batch).latent.deter)
    is_first = batch.is_first.clone()
    is_first[:, 1] = True
    reset = observe(world, replace(batch, is_first=is_first))
    reset_other = observe(world, replace(other, is_first=is_first))
    torch.testing.assert_close(reset_other.latent.deter, reset.latent.deter)


def test_action_changes_deter_from_the_next_step_on(world, batch):
    other = replace(batch, action=batch.action.clone())
    other.action[:, 3] = 1 - other.action[:, 3]
    before, after = observe(world, batch).latent.deter, observe(world, other).latent.deter
    # Latent i is of time step i + 1: steps 1..3 do not depend on the action of step 3, step 4 does.
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3] - before[:, 3]).abs().max() > 1e-4


def test_is_first_makes_deter_independent_of_earlier_steps(world, batch):
    is_first = batch.is_first.clone()
    is_first[:, 3] = True
    changed = batch.action.clone()
    changed[:, :3] = 1 - changed[:, :3]
    one = observe(world, replace(batch, is_first=is_first))
    two = observe(world, replace(batch, is_first=is_first, action=changed))
    torch.testing.assert_close(one.latent.deter[:, 2:], two.latent.deter[:, 2:])


def test_total_loss_is_the_configured_weighted_sum(world, batch):
    metrics = loss(world, batch).metrics
    parts = {
        name: metrics[f"world_model/{name}_loss"].item()
        for name in ("reconstruction", "reward", "continue", "kl_dynamics", "kl_representation")
    }
    total = 3.0 * parts["reconstruction"] + parts["reward"] + 2.0 * parts["continue"]
    total += 0.5 * parts["kl_dynamics"] + 0.1 * parts["kl_representation"]
    assert metrics["world_model/loss"].item() == pytest.approx(total, rel=1e-5)


def test_continue_metrics_split_the_probability_by_terminated_steps(world, batch):
    terminated = batch.terminated.clone()
    terminated[0, 2] = True
    logits = []
    world.continues.register_forward_hook(lambda *args: logits.append(args[2]))
    metrics = loss(world, replace(batch, terminated=terminated)).metrics
    probability = logits[0].sigmoid() / 0.99  # the head predicts gamma * P(continue)
    inside = terminated[:, 1:]
    expected = probability[inside].mean(), probability[~inside].mean()
    assert metrics["world_model/continue_prob_terminated"].item() == pytest.approx(
        expected[0].item()
    )
    assert metrics["world_model/continue_prob_other"].item() == pytest.approx(expected[1].item())


# --- DreamerV3's own posterior ---------------------------------------------------------------


@pytest.fixture
def coupled(compose):
    torch.manual_seed(0)
    return Agent(compose("backbone=gru", "posterior=coupled"), SPEC).eval().world_model


def test_coupled_posterior_depends_on_earlier_actions(coupled, batch):
    other = replace(batch, action=batch.action.clone())
    other.action[:, 2] = 1 - other.action[:, 2]
    seen = []
    coupled.posterior.register_forward_hook(lambda *args: seen.append(args[2]))
    observe(coupled, batch)
    observe(coupled, other)
    before, after = torch.stack(seen, 1).split(T + 1, 1)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3] - before[:, 3]).abs().max() > 1e-4


def test_indexed_latent_has_the_same_feature_and_token_without_gradient(world, batch):
    latent = observe(world, batch).latent
    indexed = latent.indexed()
    torch.testing.assert_close(world.feature(indexed), world.feature(latent))
    assert not world.feature(indexed).requires_grad
    nowhere = torch.zeros(B, T, dtype=torch.bool)
    torch.testing.assert_close(
        world.tokens.imagined(indexed.stoch_index, batch.action[:, 1:]),
        world.tokens(latent.stoch, batch.action[:, 1:], nowhere),
    )


@pytest.mark.parametrize("kind", ["world", "coupled"])
def test_transition_gives_the_deter_of_the_next_observed_step(kind, batch, request):
    world = request.getfixturevalue(kind)
    observed = observe(world, batch)
    everywhere = torch.arange(T).expand(B, T)
    latent, cache = world.start_imagination(observed, everywhere)
    imagined, _ = world.transition(latent, batch.action[:, 1:].flatten(0, 1), cache)
    categorical = imagined.stoch_index // world.config.discrete_size
    assert torch.equal(categorical, torch.arange(categorical.shape[1]).expand(B * T, -1))
    # The next time step gets the same token.
    close = torch.testing.assert_close
    following = observed.latent.deter[:, 1:]
    close(imagined.deter.unflatten(0, (B, T))[:, :-1], following, atol=1e-4, rtol=1e-4)


def test_coupled_posterior_gets_gradient_through_time(coupled, batch):
    batch.observations["state"].requires_grad_()
    observe(coupled, batch).latent.deter[:, -1].square().sum().backward()
    reached = batch.observations["state"].grad.abs().sum((0, 2))
    assert (reached[:-1] > 0).all() and reached[-1] == 0


def test_coupled_imagination_starts_from_the_selected_steps(coupled, batch):
    observed = observe(coupled, batch)
    _, cache = coupled.start_imagination(observed, torch.tensor([[1, 3], [0, 4]]))
    deter = coupled.deter_norm(cache).unflatten(0, (B, 2))
    expected = torch.stack([observed.latent.deter[0, [1, 3]], observed.latent.deter[1, [0, 4]]])
    torch.testing.assert_close(deter, expected)


def test_coupled_posterior_with_attention_is_refused(compose):
    with pytest.raises(ConfigError, match="posterior=coupled needs a backbone .* backbone=gru"):
        Agent(compose("posterior=coupled"), SPEC)


def test_predicted_discount_contains_gamma_in_both_recipes(compose):
    for recipe, discount in (("dreamer_v3", 0.5), ("dreamer_v3_2023", 0.45)):
        world = Agent(compose("backbone=gru", f"algo={recipe}", "algo.gamma=0.9"), SPEC).world_model
        torch.nn.init.zeros_(world.continues.mlp[-1].weight)  # both answers are equally likely
        _, predicted = world.predict(torch.randn(3, world.features))
        torch.testing.assert_close(predicted, torch.full((3,), discount))


def test_imagined_action_beyond_its_bounds_enters_clipped(world, batch):
    index = observe(world, batch).latent.indexed().stoch_index
    beyond = torch.tensor([-3.0, 1.5]).expand(B, T, 2)
    within = torch.tensor([-1.0, 1.0]).expand(B, T, 2)
    torch.testing.assert_close(
        world.tokens.imagined(index, beyond), world.tokens.imagined(index, within)
    )
