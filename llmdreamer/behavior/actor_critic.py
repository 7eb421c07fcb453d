"""Actor and critic losses on imagined trajectories, and the critic's on replayed ones too."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmdreamer.behavior.imagine import Imagined
from llmdreamer.behavior.normalize import ReturnNorm
from llmdreamer.behavior.policy import Actor
from llmdreamer.nn.functional import lambda_return, mean_by_mask
from llmdreamer.nn.layers import TwoHotHead
from llmdreamer.types import EnvSpec, IndexedLatent, Metrics, SequenceBatch

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig


@dataclass(frozen=True)
class BehaviorLoss:
    """A loss of actor and critic, and the returns that it is computed from."""

    loss: Tensor  # scalar
    returns: Tensor  # (N, H) of imagined states 0..H-1, or (B, T - 1) of replayed steps 0..T-2
    metrics: Metrics


class Behavior(nn.Module):
    """Actor, critic and slow critic, with their losses."""

    def __init__(self, features: int, spec: EnvSpec, algo: AlgoConfig) -> None:
        super().__init__()
        self.algo = algo
        self.actor = Actor(features, spec, algo)
        head = partial(
            TwoHotHead,
            units=algo.dense_units,
            layers=algo.mlp_layers,
            bins=algo.critic.bins,
            in_symlog=algo.critic.bins_in_symlog,
        )
        self.critic = head(features)
        has_action_value = algo.critic.action_value_loss_weight > 0
        self.action_value = head(features + spec.action_size) if has_action_value else None
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_norm = ReturnNorm(algo.return_norm)

    def imagination_loss(self, imagined: Imagined) -> BehaviorLoss:
        """Compute the actor and critic losses on imagined trajectories.

        Source: arXiv:2301.04104v2, "Critic learning" and "Actor learning"; danijar/dreamerv3 (2025),
        `imag_loss`: REINFORCE for every kind of action, returns from the fast critic.
        """
        logits = self.critic(imagined.features)
        value = self.critic.mean(logits).detach()
        returns = lambda_return(imagined.reward, value, imagined.discount[:, 1:], self.algo.lmbda)
        self.return_norm.update(returns)
        # The discounted probability that the episode reaches each state.
        weight = imagined.discount.cumprod(1)[:, :-1]
        policy = self.actor(imagined.features[:, :-1])
        advantage = (returns - value[:, :-1]) / self.return_norm.scale
        entropy = policy.entropy()
        objective = self.actor_objective(policy.log_prob(imagined.action), advantage)
        objective = objective + self.algo.actor.ent_coef * entropy
        actor_loss = -(weight * objective).mean()
        critic_loss = (weight * self._critic_loss(logits, imagined.features, returns)).mean()
        metrics = {
            "behavior/actor_loss": actor_loss.detach(),
            "behavior/critic_loss": critic_loss.detach(),
            "behavior/policy_entropy": entropy.detach().mean(),
            "behavior/imagined_return": returns.mean(),
            "behavior/imagined_reward": imagined.reward.mean(),
            "behavior/return_scale": self.return_norm.scale.detach(),
        }
        return BehaviorLoss(actor_loss + critic_loss, returns, metrics)

    def actor_objective(self, log_prob: Tensor, advantage: Tensor) -> Tensor:
        """The objective that the actor maximizes in addition to its entropy: REINFORCE. All (N, H)."""
        return log_prob * advantage

    def replay_loss(
        self, features: Tensor, batch: SequenceBatch, starts: Tensor, imagined_return: Tensor
    ) -> BehaviorLoss:
        """Compute the critic's loss on replayed sequences; its gradient also shapes the world model.

        Source: danijar/dreamerv3 (2025), `repl_loss`. Returns are computed from the real rewards. They are
        bootstrapped from the imagined return at time steps that imagination started from, and from the
        critic at all others.

        With `action_value_loss_weight`, which DreamerV3 does not have, these returns are also predicted from
        the feature and the action. A backbone with attention looks up a past observation only at the time
        step where a prediction needs it. The reward is predicted after the action, and the critic's target
        is a mean over actions. So neither puts the observation into the feature that the actor reads; this
        loss does (docs/log.md, "The T-maze policy, and what the features carry").

        Args:
            features: (B, T, F), of time steps 1..T of the batch, with gradient into the world model.
            starts: (B, n), indices of the features that imagination started from.
            imagined_return: (B, n), of the same time steps.
        """
        logits = self.critic(features)
        value = self.critic.mean(logits).detach()
        bootstrap = value.scatter(1, starts, imagined_return)
        # Returns are of time steps 1..T-1, whose rewards arrive one step later. If that next step starts an
        # episode, the return is unknown: it has no loss, and the return before it is bootstrapped.
        follows = ~batch.is_first[:, 2:]
        discount = self.algo.gamma * (~batch.terminated[:, 2:]).to(bootstrap.dtype)
        carry = torch.ones_like(discount)
        carry[:, :-1] = follows[:, 1:].to(bootstrap.dtype)
        lambda_ = self.algo.lmbda * carry
        returns = lambda_return(batch.reward[:, 2:], bootstrap, discount, lambda_)
        loss = self._critic_loss(logits, features.detach(), returns)
        loss = self.algo.critic.replay_loss_weight * (follows * loss).mean()
        value_terminated, value_other = mean_by_mask(value, batch.terminated[:, 1:])
        metrics = {
            "behavior/replay_critic_loss": loss.detach(),
            "behavior/value_terminated": value_terminated,
            "behavior/value_other": value_other,
        }
        if self.action_value is not None:
            value_loss = self._action_value_loss(features, batch.action[:, 1:], returns, follows)
            loss, metrics["behavior/action_value_loss"] = loss + value_loss, value_loss.detach()
        return BehaviorLoss(loss, returns, metrics)

    def _action_value_loss(
        self, features: Tensor, action: Tensor, returns: Tensor, follows: Tensor
    ) -> Tensor:
        """Two-hot loss of predicting (B, T - 1) returns from the feature and the action: a scalar."""
        assert self.action_value is not None
        inputs = torch.cat([features, action.clamp(-1.0, 1.0)], -1)[:, :-1]
        loss = self.action_value.loss(self.action_value(inputs), returns)
        return self.algo.critic.action_value_loss_weight * (follows * loss).mean()

    def _critic_loss(
        self, logits: Tensor, features: Tensor | IndexedLatent, returns: Tensor
    ) -> Tensor:
        """Two-hot loss of states 0..H-1 against their returns and against the slow critic: (N, H)."""
        with torch.no_grad():
            # All states, not a slice: for a strided input F.linear makes one product per trajectory.
            slow = self.slow_critic.mean(self.slow_critic(features))[:, :-1]
        losses = self.critic.losses(logits[:, :-1], torch.stack([returns, slow], -1))
        return losses[..., 0] + self.algo.critic.slow_regularizer_weight * losses[..., 1]

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """Update the slow critic, an exponential moving average of the critic."""
        slow: list[Tensor] = list(self.slow_critic.parameters())
        fast: list[Tensor] = list(self.critic.parameters())
        torch._foreach_lerp_(slow, fast, self.algo.critic.slow_rate)
