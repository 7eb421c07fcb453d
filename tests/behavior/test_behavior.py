"""Imagination, actor and critic, against worlds and critics whose numbers are known."""

import pytest
import torch
from torch import nn

from llmdreamer.behavior.actor_critic import Behavior, Replayed
from llmdreamer.behavior.imagine import Imagined, imagine
from llmdreamer.behavior.normalize import ReturnNorm
from llmdreamer.types import Code, EnvSpec

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


def test_the_scale_is_the_moving_distance_of_the_percentiles(compose):
    norm = ReturnNorm(compose().algo.return_norm)
    returns = torch.arange(101.0)  # percentiles 5 and 95
    norm.update(returns)
    close(norm.low, torch.tensor(0.05))
    close(norm.high, torch.tensor(0.95))
    assert norm.scale == 1  # 0.9 would blow advantages up
    norm.update(returns)
    close(norm.scale, torch.tensor(1.8905 - 0.0995))


# --- Imagination -----------------------------------------------------------------------------


class CountingWorld:
    """Memory is the sum of the second actions taken, the reward ten times that."""

    def dream(self, latent, action, state):
        state = state + action[:, 1:]
        return Code(state, latent.ones), state

    def predict(self, features):
        count = features.dense.squeeze(-1)
        return 10 * count, torch.where(count < 2, 0.5, 0.0)


def test_imagination_pairs_each_action_with_the_reward_it_leads_to():
    begin = torch.tensor([[0.0], [1.0]])
    seen = []

    def policy(features):
        seen.append(features.dense.clone())
        return torch.tensor([[0.0, 1.0]]).expand(2, 2)

    latent = Code(begin, torch.zeros(2, 1, dtype=torch.int64))
    dreamt = imagine(CountingWorld(), policy, latent, begin, 3)
    close(dreamt.features.dense.squeeze(-1), torch.tensor([[0.0, 1, 2, 3], [1, 2, 3, 4]]))
    close(dreamt.reward, torch.tensor([[10.0, 20, 30], [20, 30, 40]]))
    close(dreamt.discount, torch.tensor([[0.5, 0.5, 0, 0], [0.5, 0, 0, 0]]))
    assert dreamt.action.shape == (2, 3, 2)
    assert torch.equal(torch.stack(seen, 1), dreamt.features[:, :-1].dense)


# --- Losses on dreams ------------------------------------------------------------------------


def test_an_action_with_a_positive_advantage_becomes_more_likely(make):
    behavior = make(3)
    features = torch.randn(4, 2, 3)
    action = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(2, 1).unsqueeze(1)
    reward = torch.where(action[..., 0] == 1, 1.0, -1.0)  # the first action is the good one
    discount = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    before = behavior.actor(features[:, 0]).log_probs[:, 0].detach()
    behavior.loss(Imagined(features, action, reward, discount)).loss.backward()
    with torch.no_grad():
        for param in behavior.actor.parameters():
            param.sub_(0.1 * param.grad)
    assert (behavior.actor(features[:, 0]).log_probs[:, 0] > before).all()


def dream_loss(behavior, discount, reward):
    torch.manual_seed(1)
    features = torch.randn(1, 4, 3)
    action = torch.tensor([[[1.0, 0.0]] * 3])
    loss = behavior.loss(
        Imagined(features, action, torch.tensor([reward]), torch.tensor([discount]))
    )
    return loss.loss.item()


def test_what_is_dreamt_after_the_end_weighs_nothing(make):
    discount = [1.0, 1.0, 0.0, 1.0]  # state 2 ends the episode: 0 and 1 count
    plain = dream_loss(make(3), discount, [1.0, 2.0, 3.0])
    assert dream_loss(make(3), discount, [1.0, 2.0, 50.0]) == plain
    assert dream_loss(make(3), discount, [1.0, 2.5, 3.0]) != plain


def test_a_dream_begun_at_the_end_weighs_nothing(make):
    assert dream_loss(make(3), [0.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) == 0


# --- The critic's loss on real rows ----------------------------------------------------------


@pytest.fixture
def critic_only(make):
    behavior = make(
        1,
        "algo.gamma=0.5",
        "algo.lmbda=0.5",
        "algo.critic.replay_loss=1",
        "algo.critic.slow_regulariser=0",
    )
    behavior.critic, behavior.slow_critic = PlainCritic(), PlainCritic()
    return behavior


def rows(*, terminated):
    """Row 2 is an episode's last, row 3 the next one's first; the critic says 10 to 50."""
    return Replayed(
        torch.tensor([[10.0, 20, 30, 40, 50]]).unsqueeze(-1).requires_grad_(),
        torch.tensor([[0.0, 1, 2, 0, 4]]),
        torch.tensor([[[1.0, 0.0]] * 5]),
        torch.tensor([[False, False, False, True, False]]),
        torch.tensor([[False, False, terminated, False, False]]),
    )


NOWHERE = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0)


def test_a_truncated_episode_bootstraps_from_its_last_row_and_no_further(critic_only):
    loss = critic_only.replay_loss(rows(terminated=False), *NOWHERE)
    # Row 1: 2 + 0.5 * 30. Row 0: 1 + 0.5 * (20 + 17) / 2. Row 3: 4 + 0.5 * 50.
    close(loss.returns[0, [0, 1, 3]], torch.tensor([10.25, 17.0, 29.0]))


def test_a_terminated_episode_bootstraps_from_nothing(critic_only):
    loss = critic_only.replay_loss(rows(terminated=True), *NOWHERE)
    # Row 1: 2. Row 0: 1 + 0.5 * (20 + 2) / 2.
    close(loss.returns[0, [0, 1, 3]], torch.tensor([6.5, 2.0, 29.0]))


def test_an_imagined_return_replaces_the_critics_word(critic_only):
    start = torch.tensor([[2]]), torch.tensor([[100.0]])
    loss = critic_only.replay_loss(rows(terminated=False), *start)
    close(loss.returns[0, 1], torch.tensor(52.0))


def test_what_an_action_led_to_is_learned_in_the_feature_it_was_taken_in(make):
    """One sign, two deeds, each as often: their returns are opposite, so that a critic, which sees no
    deed, has nothing to ask of the sign. Who sees both asks for it."""
    sign = torch.tensor([1.0, 1.0, -1.0, -1.0])
    deed = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    right = sign * (deed[:, 1] - deed[:, 0])
    shown = torch.stack([sign, torch.zeros(4)], 1).unsqueeze(-1)  # the sign's row, the end's
    behavior = make(1, "algo.critic.replay_loss=0", "algo.critic.action_value_loss=1")
    fit = torch.optim.Adam(behavior.action_value.parameters(), lr=1e-2)
    for _ in range(200):
        features = shown.clone().requires_grad_()
        real = Replayed(
            features,
            torch.stack([torch.zeros(4), right], 1),
            torch.stack([deed, torch.zeros(4, 2)], 1),
            torch.zeros(4, 2, dtype=torch.bool),
            torch.tensor([[False, True]]).expand(4, 2),
        )
        nowhere = torch.zeros(4, 0, dtype=torch.int64), torch.zeros(4, 0)
        found = behavior.replay_loss(real, *nowhere)
        fit.zero_grad()
        found.loss.backward()
        fit.step()
    acted = torch.cat([shown[:, 0], deed], -1)
    close(behavior.action_value.mean(behavior.action_value(acted)), right, atol=0.1, rtol=0)
    # To each feature, more of its sign: towards what its deed led to. None to an episode's end.
    assert (features.grad[:, 0] != 0).all() and (features.grad[:, 1] == 0).all()


def test_an_episodes_last_row_carries_no_loss(critic_only):
    real = rows(terminated=False)
    loss = critic_only.replay_loss(real, *NOWHERE).loss
    # Errors of rows 0, 1 and 3: 0.25, 3 and 11; the mean is over four rows.
    close(loss, torch.tensor((0.0625 + 9 + 121) / 4))
    loss.backward()
    # The world model's features feel it, but for last rows.
    close(real.features.grad.squeeze(), torch.tensor([-0.125, 1.5, 0.0, 5.5, 0.0]))
