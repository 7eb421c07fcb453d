"""The agent: a world model and a behavior, and how they choose actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from llmdreamer.backbones import Cache, make_backbone
from llmdreamer.backbones.text import make_text_embedding
from llmdreamer.behavior.actor_critic import Behavior
from llmdreamer.config import plugins
from llmdreamer.nn.functional import mode_one_hot, sample_one_hot
from llmdreamer.types import EnvSpec, Latent
from llmdreamer.utils.errors import ConfigError
from llmdreamer.world_model.model import WorldModel
from llmdreamer.world_model.observations import check_keys, expand_keys

if TYPE_CHECKING:
    from llmdreamer.config import Config


@dataclass(frozen=True)
class AgentState:
    """The values that an agent carries from one time step of its n environments to the next."""

    stoch: Tensor  # (n, S, K), at the last time step
    action: Tensor  # (n, A), chosen at the last time step
    cache: Cache  # of the backbone


class Agent(nn.Module):
    """World model and behavior in one module.

    A variant of the algorithm is a subclass with other types. `learner_type` is called with the agent, its
    optimizer and the `algo` configuration. It returns a `llmdreamer.training.step.Learner` or a subclass;
    None means that class.

    Raises:
        ConfigError: if an observation key, the backbone or its checkpoint does not exist.
    """

    world_model_type: ClassVar[type[WorldModel]] = WorldModel
    behavior_type: ClassVar[type[Behavior]] = Behavior
    learner_type: ClassVar[Callable[..., Any] | None] = None

    def __init__(self, config: Config, spec: EnvSpec) -> None:
        super().__init__()
        self.spec = spec
        check_keys(spec, config.algo)
        backbone = make_backbone(config)
        texts = config.algo.text_keys
        reads_text = texts.encoder or texts.sequence
        text_embedding = make_text_embedding(config, backbone.vocabulary) if reads_text else None
        backbone.vocabulary = None  # the text embedding owns it now, and moves it to the device
        self.world_model = self.world_model_type(backbone, spec, config.algo, text_embedding)
        self.behavior = self.behavior_type(self.world_model.features, spec, config.algo)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    def initial_state(self, streams: int) -> AgentState:
        """Return a state for `streams` environments. Its values do not matter: `is_first` resets them."""
        config = self.world_model.config
        like = next(self.parameters())
        return AgentState(
            like.new_zeros(streams, config.stochastic_size, config.discrete_size),
            like.new_zeros(streams, self.spec.action_size),
            self.world_model.backbone.initial_cache(streams),
        )

    @torch.no_grad()
    def act(
        self,
        observations: dict[str, Tensor],
        is_first: Tensor,
        state: AgentState,
        *,
        explore: bool,
    ) -> tuple[Tensor, AgentState]:
        """Choose an action in each of n environments.

        The latent comes from the posterior, not the prior, so the action depends on the current observation.

        Args:
            observations: each (n, ...), of the current time step.
            is_first: (n,), bool.
            explore: if True, sample latent and action, as in training; if False, take the mode of both.

        Returns:
            The action, (n, A), and the state for the next time step.
        """
        latent, cache = self.infer(observations, is_first, state, explore=explore)
        policy = self.behavior.actor(self.world_model.feature(latent))
        action = policy.sample() if explore else policy.mode()
        return action, AgentState(latent.stoch, action, cache)

    @torch.no_grad()
    def infer(
        self,
        observations: dict[str, Tensor],
        is_first: Tensor,
        state: AgentState,
        *,
        explore: bool,
    ) -> tuple[Latent, Cache]:
        """Return the latents of the current time step and the cache behind them. Arguments: see `act`."""
        world_model = self.world_model
        cache = world_model.reset(state.cache, is_first, observations)
        token = world_model.tokens(state.stoch, state.action, is_first)
        hidden, cache = world_model.backbone.step(token, cache)
        deter = world_model.deter_norm(hidden)
        posterior = world_model.infer(world_model.embed(observations, 1), deter)
        stoch = sample_one_hot(posterior) if explore else mode_one_hot(posterior)
        return Latent(deter, stoch), cache


def make_agent(config: Config, spec: EnvSpec) -> Agent:
    """Build the agent of a configuration: `Agent`, or the variant that `algo.agent` names.

    Raises:
        ConfigError: as `Agent` does, or if the variant does not exist or is not an `Agent`.
    """
    config = replace(config, algo=expand_keys(config.algo, spec))
    name = config.algo.agent
    if name is None:
        return Agent(config, spec)
    made = plugins.call("algo.agent", name, config.trust, [config, spec], config.algo.options)
    if not isinstance(made, Agent):
        raise ConfigError(
            f"algo.agent={name}: makes a {type(made).__name__}, not a llmdreamer.agent.agent.Agent"
        )
    return made
