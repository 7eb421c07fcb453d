from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from llmdreamer.agent.agent import Agent
from llmdreamer.types import EnvSpec, Latent, SequenceBatch
from llmdreamer.utils.errors import ConfigError

B, T, SPEC = 2, 5, EnvSpec({"state": (3,)}, 2, True)
WEIGHTS = ["algo.world_model.reconstruction=3", "algo.world_model.kl_dynamic=0.5"]


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


def observe(world, batch):
    torch.manual_seed(1)
    return world.observe(batch)


def test_the_context_row_has_no_loss_of_its_own(world, batch):
    other = replace(batch, reward=batch.reward.clone(), terminated=batch.terminated.clone())
    other.reward[:, 0] = 100.0
    other.terminated[:, 0] = True
    torch.testing.assert_close(observe(world, other).loss, observe(world, batch).loss)


def test_the_context_row_enters_by_the_first_token_unless_an_episode_begins_there(world, batch):
    other = replace(batch, action=batch.action.clone())
    other.action[:, 0] = 1 - other.action[:, 0]
    assert not torch.equal(observe(world, other).latent.deter, observe(world, batch).latent.deter)
    is_first = batch.is_first.clone()
    is_first[:, 1] = True
    begun = observe(world, replace(batch, is_first=is_first))
    begun_other = observe(world, replace(other, is_first=is_first))
    torch.testing.assert_close(begun_other.latent.deter, begun.latent.deter)


def test_an_action_is_felt_from_the_next_row_on(world, batch):
    other = replace(batch, action=batch.action.clone())
    other.action[:, 3] = 1 - other.action[:, 3]
    before, after = observe(world, batch).latent.deter, observe(world, other).latent.deter
    # Latent i is of batch row i + 1: rows 1..3 do not know what is chosen at row 3, row 4 does.
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3] - before[:, 3]).abs().max() > 1e-4


def test_a_reset_forgets_all_that_came_before(world, batch):
    is_first = batch.is_first.clone()
    is_first[:, 3] = True
    changed = batch.action.clone()
    changed[:, :3] = 1 - changed[:, :3]
    one = observe(world, replace(batch, is_first=is_first))
    two = observe(world, replace(batch, is_first=is_first, action=changed))
    torch.testing.assert_close(one.latent.deter[:, 2:], two.latent.deter[:, 2:])


def test_total_loss_weighs_its_parts_as_configured(world, batch):
    metrics = observe(world, batch).metrics
    parts = {
        name: metrics[f"world_model/{name}_loss"].item()
        for name in ("reconstruction", "reward", "continue", "kl_dynamics", "kl_representation")
    }
    total = 3.0 * parts["reconstruction"] + parts["reward"] + parts["continue"]
    total += 0.5 * parts["kl_dynamics"] + 0.1 * parts["kl_representation"]
    assert metrics["world_model/loss"].item() == pytest.approx(total, rel=1e-5)


# --- DreamerV3's own posterior ---------------------------------------------------------------


@pytest.fixture
def coupled(compose):
    torch.manual_seed(0)
    return Agent(compose("backbone=gru", "posterior=coupled"), SPEC).eval().world_model


def test_a_coupled_posterior_depends_on_what_was_done_before(coupled, batch):
    other = replace(batch, action=batch.action.clone())
    other.action[:, 2] = 1 - other.action[:, 2]
    seen = []
    coupled.posterior.register_forward_hook(lambda *args: seen.append(args[2]))
    observe(coupled, batch)
    observe(coupled, other)
    before, after = torch.stack(seen, 1).split(T + 1, 1)
    torch.testing.assert_close(after[:, :3], before[:, :3])
    assert (after[:, 3] - before[:, 3]).abs().max() > 1e-4


def test_a_code_stands_for_its_latent(world, batch):
    latent = observe(world, batch).latent
    code = world.code(latent)
    torch.testing.assert_close(world.feature(code), world.feature(latent))
    assert not world.feature(code).requires_grad
    nowhere = torch.zeros(B, T, dtype=torch.bool)
    torch.testing.assert_close(
        world.tokens.imagined(code.ones, batch.action[:, 1:]),
        world.tokens(latent.stoch, batch.action[:, 1:], nowhere),
    )


@pytest.mark.parametrize("kind", ["world", "coupled"])
def test_a_dream_arrives_where_the_prior_expects(kind, batch, request):
    world = request.getfixturevalue(kind)
    observed = observe(world, batch)
    everywhere = torch.arange(T).expand(B, T)
    code = world.code(Latent(*(part.flatten(0, 1) for part in observed.latent)))
    state = world.select(observed, everywhere)
    dreamt, _ = world.dream(code, batch.action[:, 1:].flatten(0, 1), state)
    size = world.config.discrete_size
    assert torch.equal(dreamt.ones // size, torch.arange(dreamt.ones.shape[1]).expand(B * T, -1))
    # The row that follows takes the same token, where it is of the same episode.
    close = torch.testing.assert_close
    following = observed.latent.deter[:, 1:]
    close(dreamt.dense.unflatten(0, (B, T))[:, :-1], following, atol=1e-4, rtol=1e-4)


def test_a_coupled_posterior_learns_through_time(coupled, batch):
    batch.observations["state"].requires_grad_()
    observe(coupled, batch).latent.deter[:, -1].square().sum().backward()
    reached = batch.observations["state"].grad.abs().sum((0, 2))
    assert (reached[:-1] > 0).all() and reached[-1] == 0


def test_a_coupled_memory_can_be_gone_on_from_anywhere(coupled, batch):
    observed = observe(coupled, batch)
    memory = coupled.select(observed, torch.tensor([[1, 3], [0, 4]]))
    deter = coupled.deter_norm(memory).unflatten(0, (B, 2))
    expected = torch.stack([observed.latent.deter[0, [1, 3]], observed.latent.deter[1, [0, 4]]])
    torch.testing.assert_close(deter, expected)


def test_attention_takes_no_coupled_posterior(compose):
    with pytest.raises(ConfigError, match="posterior=coupled needs a backbone .* backbone=gru"):
        Agent(compose("posterior=coupled"), SPEC)


def test_gamma_is_in_the_discount_wherever_it_is_learnt(compose):
    for recipe, discount in (("dreamer_v3", 0.5), ("dreamer_v3_2023", 0.45)):
        world = Agent(compose("backbone=gru", f"algo={recipe}", "algo.gamma=0.9"), SPEC).world_model
        torch.nn.init.zeros_(world.continues.mlp[-1].weight)  # either answer is as likely
        _, predicted = world.predict(torch.randn(3, world.features))
        torch.testing.assert_close(predicted, torch.full((3,), discount))


def test_an_action_beyond_its_bounds_enters_as_it_was_executed_in_dreams_too(world, batch):
    code = world.code(observe(world, batch).latent)
    beyond = torch.tensor([-3.0, 1.5]).expand(B, T, 2)
    within = torch.tensor([-1.0, 1.0]).expand(B, T, 2)
    torch.testing.assert_close(
        world.tokens.imagined(code.ones, beyond), world.tokens.imagined(code.ones, within)
    )
