"""Learns the policy and its value from imagined, and the value also from replayed, trajectories."""

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
from llmdreamer.nn.functional import lambda_return
from llmdreamer.nn.layers import TwoHotHead
from llmdreamer.types import Code, EnvSpec, Metrics

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig


@dataclass(frozen=True)
class BehaviorLoss:
    loss: Tensor  # scalar
    returns: Tensor  # (N, H), of the imagined states 0..H-1
    metrics: Metrics


@dataclass(frozen=True)
class Replayed:
    """Rows of real experience, as the critic sees them."""

    features: Tensor  # (B, T, F), with gradient into the world model
    reward: Tensor  # (B, T), on arriving at each row
    action: Tensor  # (B, T, A), chosen in each row
    is_first: Tensor  # (B, T), bool
    terminated: Tensor  # (B, T), bool


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
        # None where it is not asked for, as in checkpoints from before it was there.
        asked = algo.critic.action_value_loss > 0
        self.action_value = head(features + spec.action_size) if asked else None
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.return_norm = ReturnNorm(algo.return_norm)

    def sample(self, features: Tensor | Code) -> Tensor:
        """Actions for imagination: (N, F) -> (N, A)."""
        return self.actor(features).sample()

    def loss(self, imagined: Imagined) -> BehaviorLoss:
        """Actor and critic losses on imagined trajectories.

        Source: arXiv:2301.04104v2, "Critic learning" and "Actor learning"; danijar/dreamerv3 (2025),
        `imag_loss`: REINFORCE for every kind of action, returns from the fast critic.
        """
        logits = self.critic(imagined.features)
        value = self.critic.mean(logits).detach()
        returns = lambda_return(imagined.reward, value, imagined.discount[:, 1:], self.algo.lmbda)
        self.return_norm.update(returns)
        # How likely each state is to be reached at all.
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
        """What the actor is to raise, beside its entropy: REINFORCE. All (N, H)."""
        return log_prob * advantage

    def replay_loss(self, rows: Replayed, indices: Tensor, imagined_return: Tensor) -> BehaviorLoss:
        """The critic's loss on real trajectories, whose gradient also shapes the world model.

        Source: danijar/dreamerv3 (2025), `repl_loss`. Returns are of the real rewards; they are
        bootstrapped from the imagined return where a row was imagined from, else from the critic.

        With `action_value_loss`, ours, these returns are also predicted from the feature with the action.
        A backbone that attends to its past fetches a memory where something is predicted from it: for a
        reward, once the deed is done. The actor does not see it then, nor does the critic, whose target
        is a mean over whatever was done. What an action led to is in the feature only if it is asked for
        there (docs/log.md, "The T-maze policy, and what the features carry").

        Args:
            indices: (B, n), rows that imagination started from.
            imagined_return: (B, n), of those rows.
        """
        logits = self.critic(rows.features)
        boot = self.critic.mean(logits).detach().scatter(1, indices, imagined_return)
        # A row that the next one does not follow, because an episode starts there, is its last:
        # no return is known for it, and none is carried over it.
        follows = ~rows.is_first[:, 1:]
        live = self.algo.gamma * (~rows.terminated[:, 1:]).to(boot.dtype)
        carry = torch.ones_like(live)
        carry[:, :-1] = follows[:, 1:].to(boot.dtype)
        returns = lambda_return(rows.reward[:, 1:], boot, live, self.algo.lmbda * carry)
        loss = self._critic_loss(logits, rows.features.detach(), returns)
        loss = self.algo.critic.replay_loss * (follows * loss).mean()
        metrics = {"behavior/replay_critic_loss": loss.detach()}
        if self.action_value is not None:
            acted = torch.cat([rows.features, rows.action.clamp(-1.0, 1.0)], -1)[:, :-1]
            told = self.action_value.loss(self.action_value(acted), returns)
            told = self.algo.critic.action_value_loss * (follows * told).mean()
            loss, metrics["behavior/action_value_loss"] = loss + told, told.detach()
        return BehaviorLoss(loss, returns, metrics)

    def _critic_loss(self, logits: Tensor, features: Tensor | Code, returns: Tensor) -> Tensor:
        """Two-hot loss of states 0..H-1 against their returns, and against the slow critic: (N, H)."""
        with torch.no_grad():
            # All states, not a slice: of a strided input F.linear makes a product for every row.
            slow = self.slow_critic.mean(self.slow_critic(features))[:, :-1]
        losses = self.critic.losses(logits[:, :-1], torch.stack([returns, slow], -1))
        return losses[..., 0] + self.algo.critic.slow_regulariser * losses[..., 1]

    @torch.no_grad()
    def update_slow_critic(self) -> None:
        """Move the slow critic a little towards the critic: an exponential moving average."""
        slow: list[Tensor] = list(self.slow_critic.parameters())
        fast: list[Tensor] = list(self.critic.parameters())
        torch._foreach_lerp_(slow, fast, self.algo.critic.slow_rate)
