"""The world model: encoder, memory, latent, and the heads that read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmdreamer.backbones import Backbone, State
from llmdreamer.functional import (
    balanced_kl,
    categorical_entropy,
    sample_one_hot,
    straight_through,
)
from llmdreamer.nets import (
    CategoricalHead,
    ContinueHead,
    TwoHotHead,
)
from llmdreamer.types import EnvSpec, Latent, Metrics, SequenceBatch
from llmdreamer.world_model.observations import ObservationDecoder, ObservationEncoder
from llmdreamer.world_model.tokens import TokenProjection

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig


@dataclass(frozen=True)
class Observed:
    """What the world model makes of a batch: the loss, and where imagination can begin."""

    loss: Tensor  # scalar
    latent: Latent  # (B, T, ...), with gradient
    states: State  # of the backbone, for every (b, t)
    metrics: Metrics


class WorldModel(nn.Module):
    """A recurrent state-space model whose memory is a sequence model over (z, a) tokens.

    token_t = Proj(z_{t-1}, a_{t-1}); h_t = backbone(token_{<=t}); prior p(z_t | h_t); posterior
    q(z_t | x_t). The posterior sees the observation alone, so all tokens of a sequence are known
    before the backbone runs, and training is one parallel pass.

    Args:
        text_table: what texts are read with, if `algo.text_keys` names any.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: EnvSpec,
        algo: AlgoConfig,
        text_table: nn.Module | None = None,
    ) -> None:
        super().__init__()
        config = algo.world_model
        units, layers = algo.dense_units, algo.mlp_layers
        stoch = (config.stochastic_size, config.discrete_size)
        prior_units = config.transition_model.hidden_size
        posterior_units = config.representation_model.hidden_size
        self.config = config
        self.features = backbone.width + stoch[0] * stoch[1]
        self.encoder = ObservationEncoder(spec, algo, text_table)
        self.posterior = CategoricalHead(
            self.encoder.width, posterior_units, 1, stoch, config.unimix
        )
        self.tokens = TokenProjection(
            stoch, spec.action_size, config.recurrent_model.dense_units, backbone
        )
        self.backbone = backbone
        self.deter_norm = nn.RMSNorm(backbone.width, 1e-4)
        self.prior = CategoricalHead(backbone.width, prior_units, 1, stoch, config.unimix)
        self.decoder = ObservationDecoder(self.features, spec, algo)
        self.reward = TwoHotHead(self.features, units, layers, algo.critic.bins)
        self.continues = ContinueHead(self.features, units, layers, algo.gamma)

    def observe(self, batch: SequenceBatch) -> Observed:
        """The loss on a batch, and the latents it went through.

        Source: arXiv:2301.04104v2, "World model learning", with the 2025 weights.
        """
        # Row 0 is context: z_0 and a_0 enter the first token, and no loss is taken on it.
        posterior = self.posterior(self.encoder(batch.observations, 2))  # (B, T + 1, S, K)
        stoch = straight_through(sample_one_hot(posterior), posterior)
        is_first = batch.is_first[:, 1:]
        tokens = self.tokens(stoch[:, :-1], batch.action[:, :-1], is_first)
        hidden, states = self.backbone.observe(tokens, is_first)
        latent = Latent(self.deter_norm(hidden), stoch[:, 1:])
        return self._loss(batch, posterior[:, 1:], latent, states)

    def _loss(
        self, batch: SequenceBatch, posterior: Tensor, latent: Latent, states: State
    ) -> Observed:
        prior = self.prior(latent.deter)
        features = self.feature(latent)
        observations = {key: value[:, 1:] for key, value in batch.observations.items()}
        dynamics, representation = balanced_kl(posterior, prior, self.config.kl_free_nats)
        losses = {
            "reconstruction": self.decoder.loss(features, observations),
            "reward": self.reward.loss(self.reward(features), batch.reward[:, 1:]),
            "continue": self.continues.loss(self.continues(features), batch.terminated[:, 1:]),
            "kl_dynamics": dynamics,
            "kl_representation": representation,
        }
        scale = {
            "kl_dynamics": self.config.kl_dynamic,
            "kl_representation": self.config.kl_representation,
        }
        means = {name: loss.mean() for name, loss in losses.items()}
        total = torch.stack([scale.get(name, 1.0) * mean for name, mean in means.items()]).sum()
        metrics = {f"world_model/{name}_loss": mean.detach() for name, mean in means.items()}
        metrics["world_model/loss"] = total.detach()
        with torch.no_grad():
            metrics["world_model/posterior_entropy"] = _entropy(posterior)
            metrics["world_model/prior_entropy"] = _entropy(prior)
        return Observed(total, latent, states, metrics)

    def feature(self, latent: Latent) -> Tensor:
        """The heads' input, (..., F)."""
        return torch.cat([latent.deter, latent.stoch.flatten(-2)], -1)

    def dream(self, latent: Latent, action: Tensor, state: State) -> tuple[Latent, State]:
        """One imagined step: N latents and actions (N, A) to the latents that the prior expects."""
        token = self.tokens(latent.stoch, action, None)
        hidden, state = self.backbone.step(token, state)
        deter = self.deter_norm(hidden)
        return Latent(deter, sample_one_hot(self.prior(deter))), state

    def predict(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Expected reward on arriving at a state, and its discount (0 where it ends): (...), (...)."""
        return self.reward.mean(self.reward(features)), self.continues(features).sigmoid()


def _entropy(log_probs: Tensor) -> Tensor:
    """Mean over everything of the latent's entropy, in nats."""
    return categorical_entropy(log_probs).sum(-1).mean()
