"""The world model: encoder, sequence model, latent, and the heads that read the latent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from llmdreamer.backbones import Backbone, Cache
from llmdreamer.backbones.text import TextPrompt
from llmdreamer.nn.functional import (
    balanced_kl,
    categorical_entropy,
    mean_by_mask,
    ones_at,
    sample_one_hot,
    straight_through,
)
from llmdreamer.nn.layers import (
    CategoricalHead,
    ContinueHead,
    RMSNorm,
    TwoHotHead,
)
from llmdreamer.types import EnvSpec, IndexedLatent, Latent, Metrics, SequenceBatch
from llmdreamer.utils.errors import ConfigError
from llmdreamer.world_model.observations import ObservationDecoder, ObservationEncoder
from llmdreamer.world_model.prompt import observe_with_prompt, reset_with_prompt
from llmdreamer.world_model.standardize import Standardizer
from llmdreamer.world_model.tokens import TokenProjection

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig


@dataclass(frozen=True)
class ObservedSequence:
    """The latents of a batch, and the backbone's cache behind each of them."""

    latent: Latent  # (B, T, ...), with gradient
    caches: Cache  # after every token that the backbone has encoded
    token_index: Tensor | None
    """(B, T), the position of each time step's token among them; None: each token is a time step."""


@dataclass(frozen=True)
class WorldModelOutput:
    """The loss of the world model on a batch, and the latents that imagination starts from."""

    loss: Tensor  # scalar
    observed: ObservedSequence
    metrics: Metrics


class PosteriorStep(NamedTuple):
    """One time step of B sequences with a coupled posterior."""

    log_probs: Tensor  # (B, S, K), the posterior's
    deter: Tensor  # (B, D)
    stoch: Tensor  # (B, S, K)
    cache: Cache  # after this step


class CloneIdentity(nn.Module):
    """Identity that clones. Aliasing `deter` and the cache would trigger a second torch.compile graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class WorldModel(nn.Module):
    """A recurrent state-space model whose recurrent part is a sequence model over (z, a) tokens.

    token_t = Proj(z_{t-1}, a_{t-1}); h_t = backbone(token_{<=t}); prior p(z_t | h_t); posterior
    q(z_t | x_t). The posterior sees the observation alone, so all tokens of a sequence are known
    before the backbone runs, and training is one parallel pass. A recurrent backbone can have
    DreamerV3's own posterior instead, q(z_t | h_t, x_t). It needs a loop over time.

    The texts that `algo.text_keys.sequence` names become tokens in front of each episode.

    Args:
        text_embedding: embeds texts, if `algo.text_keys` names any.

    Raises:
        ConfigError: if the posterior needs a recurrent backbone and this one is not recurrent.
    """

    def __init__(
        self,
        backbone: Backbone,
        spec: EnvSpec,
        algo: AlgoConfig,
        text_embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        config = algo.world_model
        units, layers = algo.dense_units, algo.mlp_layers
        stoch = (config.stochastic_size, config.discrete_size)
        heads = layers if config.head_layers is None else config.head_layers
        self.config = config
        self.features = backbone.width + stoch[0] * stoch[1]
        vectors = [*algo.mlp_keys.encoder, *algo.mlp_keys.decoder]
        self.standardizer = Standardizer(spec.observations, vectors, enabled=config.standardize)
        self.encoder = ObservationEncoder(spec, algo, text_embedding)
        self.coupled = config.posterior == "coupled"
        if self.coupled and not backbone.recurrent:
            raise ConfigError(
                "posterior=coupled needs a backbone that is trained step by step: set"
                " backbone=gru, backbone=block_gru or posterior=decoupled"
            )
        inputs = self.encoder.width + (backbone.width if self.coupled else 0)
        sizes = config.representation_model
        self.posterior = CategoricalHead(
            inputs, sizes.hidden_size, sizes.layers, stoch, config.unimix
        )
        self.tokens = TokenProjection(
            stoch, spec.action_size, config.recurrent_model.dense_units, backbone
        )
        self.backbone = backbone
        self.prompt: TextPrompt | None = None
        if algo.text_keys.sequence:
            assert text_embedding is not None, "texts need a text embedding"
            self.prompt = TextPrompt(text_embedding, algo.text_keys.sequence, backbone)
        # Pretrained models differ in the scale of their outputs. A GRU cell's output is in [-1, 1] already.
        self.deter_norm = CloneIdentity() if backbone.uses_rssm_input else RMSNorm(backbone.width)
        sizes = config.transition_model
        self.prior = CategoricalHead(
            backbone.width, sizes.hidden_size, sizes.layers, stoch, config.unimix
        )
        self.decoder = ObservationDecoder(self.features, spec, algo)
        self.reward = TwoHotHead(
            self.features, units, heads, algo.critic.bins, algo.critic.bins_in_symlog
        )
        self.continues = ContinueHead(
            self.features, units, heads, algo.gamma, config.discount_in_continue_head
        )

    @property
    def loss_compiles(self) -> bool:
        """Return True if torch.compile can turn `loss` into one graph.

        A coupled posterior loops over time, which would be one long graph. The number of distinct texts
        depends on the data, so text encoders cannot be one static graph.
        """
        texts = (self.prompt, self.encoder.text, self.decoder.words)
        reads_text = any(module is not None for module in texts)
        return "observe" in self.backbone.compiles and not self.coupled and not reads_text

    def loss(self, batch: SequenceBatch) -> WorldModelOutput:
        """Compute the loss on a batch, and the latents of its time steps.

        Source: arXiv:2301.04104v2, "World model learning", with the 2025 weights.
        """
        posterior, observed = self.observe(batch)
        loss, metrics = self._losses(batch, posterior, observed.latent)
        return WorldModelOutput(loss, observed, metrics)

    def observe(self, batch: SequenceBatch) -> tuple[Tensor, ObservedSequence]:
        """Infer the posterior of each time step: its log-probabilities (B, T, S, K), and the latents."""
        # Time step 0 is context: z_0 and a_0 enter the first token, and no loss is taken on it.
        embedding = self.embed(batch.observations, 2)  # (B, T + 1, E)
        if self.coupled:
            return self._observe_coupled(embedding, batch)
        return self._observe_parallel(embedding, batch)

    def _observe_parallel(
        self, embedding: Tensor, batch: SequenceBatch
    ) -> tuple[Tensor, ObservedSequence]:
        """Observe all time steps in one pass of the backbone."""
        action, is_first = batch.action, batch.is_first[:, 1:]
        posterior = self.posterior(embedding)
        stoch = self._sample(posterior)
        tokens = self.tokens(stoch[:, :-1], action[:, :-1], is_first)
        token_index = None
        planned = batch.planned_is_first[:, 1:]
        if self.prompt is None:
            starts = planned if self.backbone.plans_on_cpu else is_first
            hidden, caches = self.backbone.observe(tokens, starts)
        else:
            texts = {key: batch.observations[key][:, 1:] for key in self.prompt.keys}
            prompted = observe_with_prompt(self.prompt, self.backbone, tokens, planned, texts)
            hidden, caches, token_index = prompted.deter, prompted.caches, prompted.token_index
        latent = Latent(self.deter_norm(hidden), stoch[:, 1:])
        return posterior[:, 1:], ObservedSequence(latent, caches, token_index)

    def _observe_coupled(
        self, embedding: Tensor, batch: SequenceBatch
    ) -> tuple[Tensor, ObservedSequence]:
        """Observe the time steps one by one, because z_t needs h_t and h_{t+1} needs z_t."""
        action, is_first = batch.action, batch.is_first[:, 1:]
        # Whether a text is read decides what runs, so it is decided on the CPU.
        resets = is_first.clone() if self.prompt is None else batch.planned_is_first[:, 1:].clone()
        resets[:, 0] = True  # so that texts, if any, are read before time step 1 in any case
        cache = self.backbone.initial_cache(embedding.shape[0])
        deter = embedding.new_zeros(embedding.shape[0], self.backbone.width)
        # The context step has no history.
        stoch = self._sample(self.infer(embedding[:, 0], deter))
        steps: list[PosteriorStep] = []
        for t in range(is_first.shape[1]):
            observations = {key: value[:, t + 1] for key, value in batch.observations.items()}
            cache = self.reset(cache, resets[:, t], observations)
            step = self.observe_step(
                embedding[:, t + 1], stoch, action[:, t], is_first[:, t], cache
            )
            steps.append(step)
            stoch, cache = step.stoch, step.cache
        posterior = torch.stack([step.log_probs for step in steps], 1)
        deter = torch.stack([step.deter for step in steps], 1)
        latent = Latent(deter, torch.stack([step.stoch for step in steps], 1))
        caches = self.backbone.stack([step.cache for step in steps])
        return posterior, ObservedSequence(latent, caches, None)

    def observe_step(
        self, embedding: Tensor, stoch: Tensor, action: Tensor, is_first: Tensor, cache: Cache
    ) -> PosteriorStep:
        """Observe one time step with a coupled posterior.

        Args:
            embedding: (B, E), of this step.
            stoch: (B, S, K), of the previous step, like `action`, (B, A).
            is_first: (B,), bool, of this step.
            cache: of B streams, before this step.
        """
        hidden, cache = self.backbone.step(self.tokens(stoch, action, is_first), cache)
        deter = self.deter_norm(hidden)
        posterior = self.infer(embedding, deter)
        return PosteriorStep(posterior, deter, self._sample(posterior), cache)

    def reset(self, cache: Cache, is_first: Tensor, observations: Mapping[str, Tensor]) -> Cache:
        """Empty the cache of the streams whose episode begins, and prompt it with the episode's texts.

        Args:
            is_first: (N,), bool.
            observations: each (N, ...), of the time step that comes next.
        """
        if self.prompt is None:
            return self.backbone.reset(cache, is_first)
        return reset_with_prompt(self.prompt, self.backbone, cache, is_first, observations)

    def embed(self, observations: Mapping[str, Tensor], lead: int) -> Tensor:
        """Embed observations in the environment's units: (*lead dims, ...) each -> (*lead dims, E)."""
        embedding: Tensor = self.encoder(self.standardizer(observations, lead), lead)
        return embedding

    def infer(self, embedding: Tensor, deter: Tensor) -> Tensor:
        """Return the posterior's log-probabilities, given an observation (..., E) and `deter` (..., D)."""
        inputs = torch.cat([embedding, deter], -1) if self.coupled else embedding
        log_probs: Tensor = self.posterior(inputs)
        return log_probs

    @staticmethod
    def _sample(posterior: Tensor) -> Tensor:
        return straight_through(sample_one_hot(posterior), posterior)

    def _losses(
        self, batch: SequenceBatch, posterior: Tensor, latent: Latent
    ) -> tuple[Tensor, Metrics]:
        prior = self.prior(latent.deter)
        features = self.feature(latent)
        observations = {key: value[:, 1:] for key, value in batch.observations.items()}
        targets = self.standardizer(observations, 2)
        continues, terminated = self.continues(features), batch.terminated[:, 1:]
        dynamics, representation = balanced_kl(posterior, prior, self.config.kl_free_nats)
        losses = {
            "reconstruction": self.decoder.loss(features, targets),
            "reward": self.reward.loss(self.reward(features), batch.reward[:, 1:]),
            "continue": self.continues.loss(continues, terminated),
            "kl_dynamics": dynamics,
            "kl_representation": representation,
        }
        scale = {
            "reconstruction": self.config.reconstruction_weight,
            "continue": self.config.continue_weight,
            "kl_dynamics": self.config.kl_dynamics_weight,
            "kl_representation": self.config.kl_representation_weight,
        }
        means = {name: loss.mean() for name, loss in losses.items()}
        total = torch.stack([scale.get(name, 1.0) * mean for name, mean in means.items()]).sum()
        metrics = {f"world_model/{name}_loss": mean.detach() for name, mean in means.items()}
        metrics["world_model/loss"] = total.detach()
        with torch.no_grad():
            metrics["world_model/posterior_entropy"] = _entropy(posterior)
            metrics["world_model/prior_entropy"] = _entropy(prior)
            probabilities = mean_by_mask(self.continues.probability(continues), terminated)
            metrics["world_model/continue_prob_terminated"] = probabilities[0]
            metrics["world_model/continue_prob_other"] = probabilities[1]
        return total, metrics

    def feature(self, latent: Latent | IndexedLatent) -> Tensor:
        """Return the heads' input, (..., F)."""
        if isinstance(latent, IndexedLatent):
            width = self.features - self.backbone.width
            ones = ones_at(latent.stoch_index, width, latent.deter.dtype)
            return torch.cat([latent.deter, ones], -1)
        return torch.cat([latent.deter, latent.stoch.flatten(-2)], -1)

    def start_imagination(
        self, observed: ObservedSequence, starts: Tensor, steps: int | None = None
    ) -> tuple[IndexedLatent, Cache]:
        """Return the latents at (b, starts[b, i]) and the cache behind them, without gradient.

        Args:
            starts: (B, n), time steps; the result has N = B * n streams.
            steps: largest number of steps that will be imagined; None: unknown.
        """
        batch = torch.arange(starts.shape[0], device=starts.device).unsqueeze(1)
        deter, stoch = (x.detach()[batch, starts].flatten(0, 1) for x in observed.latent)
        if observed.token_index is not None:
            starts = observed.token_index.gather(1, starts)
        cache = self.backbone.select(observed.caches, starts, steps)
        return Latent(deter, stoch).indexed(), cache

    def imagine_step(
        self, policy: Callable[[IndexedLatent], Tensor], latent: IndexedLatent, cache: Cache
    ) -> tuple[Tensor, IndexedLatent, Cache]:
        """Choose actions (N, A) in N latents and imagine the next latents and cache."""
        action = policy(latent)
        return action, *self.transition(latent, action, cache)

    def transition(
        self, latent: IndexedLatent, action: Tensor, cache: Cache
    ) -> tuple[IndexedLatent, Cache]:
        """Sample the latents that the prior predicts after actions (N, A) in N latents."""
        token = self.tokens.imagined(latent.stoch_index, action)
        hidden, cache = self.backbone.step(token, cache)
        deter = self.deter_norm(hidden)
        size = self.posterior.shape[1]
        return IndexedLatent.from_classes(deter, self.prior.sample(deter), size), cache

    def merged_adapters(self) -> AbstractContextManager[None]:
        """Merge LoRA adapters into the backbone's weights while the context is open; no gradient flows."""
        return self.backbone.merged()

    def predict(self, features: Tensor | IndexedLatent) -> tuple[Tensor, Tensor]:
        """Predict the reward on arriving at a state, and its discount (0 if it ends): (...), (...)."""
        return self.reward.mean(self.reward(features)), self.continues.discount(
            self.continues(features)
        )


def _entropy(log_probs: Tensor) -> Tensor:
    """Return the latent's entropy, averaged over all leading dimensions, in nats."""
    return categorical_entropy(log_probs).sum(-1).mean()
