"""Imagination, actor and critic, against world models and critics with known outputs."""

import pytest
import torch
from torch import nn

from llmdreamer.behavior.actor_critic import Behavior
from llmdreamer.behavior.imagine import Imagined, roll_out, sample_starts
from llmdreamer.behavior.normalize import ReturnNorm
from llmdreamer.types import EnvSpec, IndexedLatent, SequenceBatch

torch.set_num_threads(1)
close = torch.testing.assert_close


class PlainCritic(nn.Module):
    """Its value is the feature itself, its loss the squared error."""

    def forward(self, features):
        return features

    def mean(self, logits):
        return logits.squeeze(-1)

    def losses(self, logits, targets):
        return (logits - targets) ** 2


@pytest.fixture
def make(compose):
    def behavior(features, *overrides):
        torch.manual_seed(0)
        spec = EnvSpec({}, 2, True)
        return Behavior(features, spec, compose("algo.dense_units=16", *overrides).algo)

    return behavior


# --- Scale of returns ------------------------------------------------------------------------


def test_return_scale_is_the_moving_distance_of_percentiles(compose):
    norm = ReturnNorm(compose().algo.return_norm)
    returns = torch.arange(101.0)  # percentiles 5 and 95
    norm.update(returns)
    close(norm.low, torch.tensor(0.05))
    close(norm.high, torch.tensor(0.95))
    assert norm.scale == 1  # 0.9 would scale advantages up
    norm.update(returns)
    close(norm.scale, torch.tensor(1.8905 - 0.0995))


# --- Imagination -----------------------------------------------------------------------------


class CountingWorld:
    """Its cache is the sum of the second actions taken, its reward ten times that."""

    def imagine_step(self, policy, latent, cache):
        action = policy(latent)
        cache = cache + action[:, 1:]
        return action, IndexedLatent(cache, latent.stoch_index), cache

    def predict(self, features):
        count = features.deter.squeeze(-1)
        return 10 * count, torch.where(count < 2, 0.5, 0.0)


def test_roll_out_pairs_each_action_with_the_reward_it_leads_to():
    begin = torch.tensor([[0.0], [1.0]])
    seen = []

    def policy(features):
        seen.append(features.deter.clone())
        return torch.tensor([[0.0, 1.0]]).expand(2, 2)

    latent = IndexedLatent(begin, torch.zeros(2, 1, dtype=torch.int64))
    imagined = roll_out(CountingWorld(), policy, latent, begin, 3)
    close(imagined.features.deter.squeeze(-1), torch.tensor([[0.0, 1, 2, 3], [1, 2, 3, 4]]))
    close(imagined.reward, torch.tensor([[10.0, 20, 30], [20, 30, 40]]))
    close(imagined.discount, torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0, 0, 0]]))
    assert imagined.action.shape == (2, 3, 2)
    assert torch.equal(torch.stack(seen, 1), imagined.features[:, :-1].deter)


def test_sampled_starts_are_distinct_and_in_order():
    starts = sample_starts(50, 8, 2, torch.device("cpu"))
    assert starts.shape == (50, 2) and (starts[:, 0] < starts[:, 1]).all()
    assert set(starts.flatten().tolist()) == set(range(8))


# --- Losses on imagination --------------------------------------------------------------------


def test_action_with_positive_advantage_becomes_more_likely(make):
    behavior = make(3)
    features = torch.randn(4, 2, 3)
    action = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 1).unsqueeze(1)
    reward = torch.where(action[..., 0] == 1, 1.0, -1.0)  # the first action is the good one
    discount = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    before = behavior.actor(features[:, 0]).log_probs[:, 0].detach()
    behavior.imagination_loss(Imagined(features, action, reward, discount)).loss.backward()
    with torch.no_grad():
        for param in behavior.actor.parameters():
            param.sub_(0.1 * param.grad)
    assert (behavior.actor(features[:, 0]).log_probs[:, 0] > before).all()


def imagination_loss(behavior, discount, reward):
    torch.manual_seed(1)
    features = torch.randn(1, 4, 3)
    action = torch.tensor([[[1.0, 0.0]] * 3])
    loss = behavior.imagination_loss(
        Imagined(features, action, torch.tensor([reward]), torch.tensor([discount]))
    )
    return loss.loss.item()


def test_imagined_steps_after_the_end_have_no_weight(make):
    discount = [1.0, 1.0, 0.0, 1.0]  # state 2 ends the episode: 0 and 1 count
    plain = imagination_loss(make(3), discount, [1.0, 2.0, 3.0])
    assert imagination_loss(make(3), discount, [1.0, 2.0, 50.0]) == plain
    assert imagination_loss(make(3), discount, [1.0, 2.5, 3.0]) != plain


def test_imagination_from_a_terminal_state_has_no_weight(make):
    assert imagination_loss(make(3), [0.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == 0


# --- The critic's loss on replay -------------------------------------------------------------


@pytest.fixture
def critic_only(make):
    behavior = make(
        1,
        "algo.gamma=0.5",
        "algo.lmbda=0.5",
        "algo.critic.replay_loss_weight=1",
        "algo.critic.slow_regularizer_weight=0",
    )
    behavior.critic, behavior.slow_critic = PlainCritic(), PlainCritic()
    return behavior


def with_context(reward, action, is_first, terminated):
    """A batch of these time steps, behind a context step that no loss may read."""
    return SequenceBatch(
        {},
        torch.cat([torch.full_like(action[:, :1], 7.0), action], 1),
        torch.cat([torch.full_like(reward[:, :1], 7.0), reward], 1),
        torch.cat([torch.ones_like(is_first[:, :1]), is_first], 1),
        torch.cat([torch.ones_like(terminated[:, :1]), terminated], 1),
    )


def replayed(*, terminated):
    """Features and batch. Step 2 ends an episode, step 3 begins the next; values are 10 to 50."""
    features = torch.tensor([[10.0, 20, 30, 40, 50]]).unsqueeze(-1).requires_grad_()
    return features, with_context(
        torch.tensor([[0.0, 1, 2, 0, 4]]),
        torch.tensor([[[1.0, 0.0]] * 5]),
        torch.tensor([[False, False, False, True, False]]),
        torch.tensor([[False, False, terminated, False, False]]),
    )


NOWHERE = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0)


def test_truncated_episode_bootstraps_from_its_last_step(critic_only):
    loss = critic_only.replay_loss(*replayed(terminated=False), *NOWHERE)
    # Step 1: 2 + 0.5 * 30. Step 0: 1 + 0.5 * (20 + 17) / 2. Step 3: 4 + 0.5 * 50.
    close(loss.returns[0, [0, 1, 3]], torch.tensor([10.25, 17.0, 29.0]))


def test_terminated_episode_does_not_bootstrap(critic_only):
    loss = critic_only.replay_loss(*replayed(terminated=True), *NOWHERE)
    # Step 1: 2. Step 0: 1 + 0.5 * (20 + 2) / 2.
    close(loss.returns[0, [0, 1, 3]], torch.tensor([6.5, 2.0, 29.0]))


def test_imagined_return_replaces_the_critics_bootstrap(critic_only):
    start = torch.tensor([[2]]), torch.tensor([[100.0]])
    loss = critic_only.replay_loss(*replayed(terminated=False), *start)
    close(loss.returns[0, 1], torch.tensor(52.0))


def test_action_value_loss_asks_the_feature_for_the_actions_outcome(make):
    """Two signs and two actions, equally often: right actions return 1, wrong ones -1.

    The mean return is zero for either sign, so a critic without the action learns nothing of the sign. The
    action value needs it.
    """
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])
    chosen = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    right = sign * (chosen[:, 1] - chosen[:, 0])
    shown = torch.stack([sign, torch.zeros(4)], 1).unsqueeze(
        -1
    )  # the step with the sign, the last step
    behavior = make(1, "algo.critic.replay_loss_weight=0", "algo.critic.action_value_loss_weight=1")
    fit = torch.optim.Adam(behavior.action_value.parameters(), lr=1e-2)
    for _ in range(200):
        features = shown.clone().requires_grad_()
        batch = with_context(
            torch.stack([torch.zeros(4), right], 1),
            torch.stack([chosen, torch.zeros(4, 2)], 1),
            torch.zeros(4, 2, dtype=torch.bool),
            torch.tensor([[False, True]]).expand(4, 2),
        )
        nowhere = torch.zeros(4, 0, dtype=torch.int64), torch.zeros(4, 0)
        fit.zero_grad()
        behavior.replay_loss(features, batch, *nowhere).loss.backward()
        fit.step()
    acted = torch.cat([shown[:, 0], chosen], -1)
    close(behavior.action_value.mean(behavior.action_value(acted)), right, atol=0.1, rtol=0)
    # The gradient reaches the features with the sign, and not those of the episode's end.
    assert (features.grad[:, 0] != 0).all() and (features.grad[:, 1] == 0).all()


def test_last_step_of_an_episode_has_no_replay_loss(critic_only):
    features, batch = replayed(terminated=False)
    loss = critic_only.replay_loss(features, batch, *NOWHERE).loss
    # Errors of steps 0, 1 and 3: 0.25, 3 and 11; the mean is over four steps.
    close(loss, torch.tensor((0.0625 + 9 + 121) / 4))
    loss.backward()
    # It has a gradient into the world model's features, except at last steps.
    close(features.grad.squeeze(), torch.tensor([-0.125, 1.5, 0.0, 5.5, 0.0]))


def test_replay_metrics_split_the_value_by_terminated_steps(critic_only):
    features, batch = replayed(terminated=True)
    metrics = critic_only.replay_loss(features, batch, *NOWHERE).metrics
    value, terminated = features.detach().squeeze(-1), batch.terminated[:, 1:]
    assert terminated.any()
    close(metrics["behavior/value_terminated"], value[terminated].mean())
    close(metrics["behavior/value_other"], value[~terminated].mean())
