"""The world model: encoder, memory, latent, and the heads that read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from llmdreamer.backbones import Backbone, Cache
from llmdreamer.backbones.text import TextPrompt
from llmdreamer.nn.functional import (
    balanced_kl,
    categorical_entropy,
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
from llmdreamer.types import Code, EnvSpec, Latent, Metrics, SequenceBatch
from llmdreamer.utils.errors import ConfigError
from llmdreamer.world_model.observations import ObservationDecoder, ObservationEncoder
from llmdreamer.world_model.prompt import begin_prompted, observe_prompted
from llmdreamer.world_model.tokens import TokenProjection

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig


@dataclass(frozen=True)
class Observed:
    """What the world model makes of a batch: the loss, and where imagination can begin."""

    loss: Tensor  # scalar
    latent: Latent  # (B, T, ...), with gradient
    states: Cache  # of the backbone, for every token it has seen
    column: Tensor | None  # (B, T), which of them are the rows'; None: they are the rows
    metrics: Metrics


class Row(NamedTuple):
    """What a coupled pass finds in one row of B sequences."""

    posterior: Tensor  # (B, S, K), log-probabilities
    deter: Tensor  # (B, D)
    stoch: Tensor  # (B, S, K)
    memory: Cache  # after it


class AsItIs(nn.Module):
    """In a norm's place. A copy: one tensor as `deter` and as state would be a compiled dream of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


class WorldModel(nn.Module):
    """A recurrent state-space model whose memory is a sequence model over (z, a) tokens.

    token_t = Proj(z_{t-1}, a_{t-1}); h_t = backbone(token_{<=t}); prior p(z_t | h_t); posterior
    q(z_t | x_t). The posterior sees the observation alone, so all tokens of a sequence are known
    before the backbone runs, and training is one parallel pass. A recurrent backbone may have
    DreamerV3's own posterior instead, q(z_t | h_t, x_t), at the price of a loop over time.

    Texts that `algo.text_keys.sequence` names are tokens in front of each episode, too.

    Args:
        text_table: what texts are read with, if `algo.text_keys` names any.

    Raises:
        ConfigError: if the posterior asked for needs a recurrent backbone, and this is none.
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
        heads = layers if config.head_layers is None else config.head_layers
        self.config = config
        self.features = backbone.width + stoch[0] * stoch[1]
        self.encoder = ObservationEncoder(spec, algo, text_table)
        self.coupled = config.posterior == "coupled"
        if self.coupled and not backbone.recurrent:
            raise ConfigError(
                "posterior=coupled needs a backbone that is trained step by step: set"
                " backbone=gru, backbone=block_gru or posterior=decoupled"
            )
        seen = self.encoder.width + (backbone.width if self.coupled else 0)
        sizes = config.representation_model
        self.posterior = CategoricalHead(
            seen, sizes.hidden_size, sizes.layers, stoch, config.unimix
        )
        self.tokens = TokenProjection(
            stoch, spec.action_size, config.recurrent_model.dense_units, backbone
        )
        self.backbone = backbone
        self.prompt: TextPrompt | None = None
        if algo.text_keys.sequence:
            assert text_table is not None, "texts need a table to be read with"
            self.prompt = TextPrompt(text_table, algo.text_keys.sequence, backbone)
        # Checkpoints differ in the scale of what they say. A cell's memory is in [-1, 1] as it is.
        self.deter_norm = AsItIs() if backbone.uses_rssm_input else RMSNorm(backbone.width)
        sizes = config.transition_model
        self.prior = CategoricalHead(
            backbone.width, sizes.hidden_size, sizes.layers, stoch, config.unimix
        )
        self.decoder = ObservationDecoder(self.features, spec, algo)
        self.reward = TwoHotHead(
            self.features, units, heads, algo.critic.bins, algo.critic.bins_in_symlog
        )
        self.continues = ContinueHead(
            self.features, units, heads, algo.gamma, config.continue_learns_gamma
        )

    @property
    def compiles(self) -> bool:
        """Whether `observe` is one graph for torch.compile: a pass of the backbone that is, and no text.

        How many different texts a batch has, numbers say. A loop over rows is one long graph.
        """
        texts = (self.prompt, self.encoder.text, self.decoder.words)
        reads = any(part is not None for part in texts)
        return "observe" in self.backbone.compiles and not self.coupled and not reads

    def observe(self, batch: SequenceBatch, row: Callable[..., Row] | None = None) -> Observed:
        """The loss on a batch, and the latents it went through.

        Source: arXiv:2301.04104v2, "World model learning", with the 2025 weights.

        Args:
            row: what a coupled posterior calls for each row but the first, which has no memory to learn
                from: `row` or its compiled form; None: `row`.
        """
        # Row 0 is context: z_0 and a_0 enter the first token, and no loss is taken on it.
        embedding = self.encoder(batch.observations, 2)  # (B, T + 1, E)
        if self.coupled:
            posterior, latent, states = self._observe_coupled(embedding, batch, row or self.row)
            column = None
        else:
            posterior, latent, states, column = self._observe_parallel(embedding, batch)
        return self._loss(batch, posterior, latent, states, column)

    def _observe_parallel(
        self, embedding: Tensor, batch: SequenceBatch
    ) -> tuple[Tensor, Latent, Cache, Tensor | None]:
        """All rows at once: posterior (B, T, S, K), latent, the backbone's states, and their columns."""
        action, is_first = batch.action, batch.is_first[:, 1:]
        posterior = self.posterior(embedding)
        stoch = self._sample(posterior)
        tokens = self.tokens(stoch[:, :-1], action[:, :-1], is_first)
        column = None
        if self.prompt is None:
            hidden, states = self.backbone.observe(tokens, is_first)
        else:
            texts = {key: batch.observations[key][:, 1:] for key in self.prompt.keys}
            found = observe_prompted(self.prompt, self.backbone, tokens, is_first, texts)
            hidden, states, column = found.deter, found.states, found.column
        return posterior[:, 1:], Latent(self.deter_norm(hidden), stoch[:, 1:]), states, column

    def row(
        self, embedding: Tensor, stoch: Tensor, action: Tensor, is_first: Tensor, memory: Cache
    ) -> Row:
        """One row of a coupled pass.

        Args:
            embedding: (B, E), of the row.
            stoch: (B, S, K), of the row before, as `action`, (B, A).
            is_first: (B,), bool, of the row.
            memory: of B streams, before the row.
        """
        hidden, memory = self.backbone.step(self.tokens(stoch, action, is_first), memory)
        deter = self.deter_norm(hidden)
        posterior = self.infer(embedding, deter)
        return Row(posterior, deter, self._sample(posterior), memory)

    def _observe_coupled(
        self, embedding: Tensor, batch: SequenceBatch, row: Callable[..., Row]
    ) -> tuple[Tensor, Latent, Cache]:
        """Row by row, because z_t needs h_t, and h_{t+1} needs z_t."""
        action, is_first = batch.action, batch.is_first[:, 1:]
        begins = is_first.clone()
        begins[:, 0] = True  # where texts, if any, are told in any case
        memory = self.backbone.initial_cache(embedding.shape[0])
        deter = embedding.new_zeros(embedding.shape[0], self.backbone.width)
        stoch = self._sample(self.infer(embedding[:, 0], deter))  # the context row has no memory
        rows: list[Row] = []
        for t in range(is_first.shape[1]):
            seen = {key: rows[:, t + 1] for key, rows in batch.observations.items()}
            memory = self.begin(memory, begins[:, t], seen)
            # The first memory has no gradient: compiled, it would be a graph of its own.
            advance = row if t else self.row
            found = advance(embedding[:, t + 1], stoch, action[:, t], is_first[:, t], memory)
            rows.append(found)
            stoch, memory = found.stoch, found.memory
        posterior = torch.stack([found.posterior for found in rows], 1)
        deter = torch.stack([found.deter for found in rows], 1)
        latent = Latent(deter, torch.stack([found.stoch for found in rows], 1))
        return posterior, latent, self.backbone.stack([found.memory for found in rows])

    def begin(self, state: Cache, is_first: Tensor, observations: Mapping[str, Tensor]) -> Cache:
        """The memory of N streams before a row: emptied where one begins, and told its texts if it is to be.

        Args:
            is_first: (N,), bool.
            observations: each (N, ...), of that row.
        """
        if self.prompt is None:
            return self.backbone.reset(state, is_first)
        return begin_prompted(self.prompt, self.backbone, state, is_first, observations)

    def select(self, observed: Observed, indices: Tensor, steps: int | None = None) -> Cache:
        """The memory behind the latents at (b, indices[b, i]), (B, n): of N = B * n streams.

        Args:
            steps: how many will be dreamt on from there at most; None: any number.
        """
        if observed.column is not None:
            indices = observed.column.gather(1, indices)
        return self.backbone.select(observed.states, indices, steps)

    def infer(self, embedding: Tensor, deter: Tensor) -> Tensor:
        """The posterior after an observation (..., E) at memory (..., D): log-probabilities."""
        seen = torch.cat([embedding, deter], -1) if self.coupled else embedding
        log_probs: Tensor = self.posterior(seen)
        return log_probs

    @staticmethod
    def _sample(posterior: Tensor) -> Tensor:
        return straight_through(sample_one_hot(posterior), posterior)

    def _loss(
        self,
        batch: SequenceBatch,
        posterior: Tensor,
        latent: Latent,
        states: Cache,
        column: Tensor | None,
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
            "reconstruction": self.config.reconstruction,
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
        return Observed(total, latent, states, column, metrics)

    def feature(self, latent: Latent | Code) -> Tensor:
        """The heads' input, (..., F)."""
        if isinstance(latent, Code):
            width = self.features - self.backbone.width
            ones = ones_at(latent.ones, width, latent.dense.dtype)
            return torch.cat([latent.dense, ones], -1)
        return torch.cat([latent.deter, latent.stoch.flatten(-2)], -1)

    def code(self, latent: Latent) -> Code:
        """The same without gradient, as imagination takes it."""
        return self._code(latent.deter.detach(), latent.stoch.argmax(-1, keepdim=True))

    def dream(self, latent: Code, action: Tensor, state: Cache) -> tuple[Code, Cache]:
        """One imagined step: N latents and actions (N, A) to the latents that the prior expects."""
        token = self.tokens.imagined(latent.ones, action)
        hidden, state = self.backbone.step(token, state)
        deter = self.deter_norm(hidden)
        return self._code(deter, self.prior.sample(deter)), state

    def _code(self, deter: Tensor, classes: Tensor) -> Code:
        """Of the class of each categorical, (..., S, 1)."""
        count, size = self.posterior.shape
        first = torch.arange(0, count * size, size, device=deter.device)
        return Code(deter, classes.squeeze(-1) + first)

    def predict(self, features: Tensor | Code) -> tuple[Tensor, Tensor]:
        """Expected reward on arriving at a state, and its discount (0 where it ends): (...), (...)."""
        return self.reward.mean(self.reward(features)), self.continues.discount(
            self.continues(features)
        )


def _entropy(log_probs: Tensor) -> Tensor:
    """Mean over everything of the latent's entropy, in nats."""
    return categorical_entropy(log_probs).sum(-1).mean()
