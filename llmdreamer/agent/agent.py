"""The whole agent: a world model and the behavior learned in it, and how they act together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from llmdreamer.backbones import Cache, make_backbone
from llmdreamer.backbones.text import make_table
from llmdreamer.behavior.actor_critic import Behavior
from llmdreamer.config import plugins
from llmdreamer.nn.functional import mode_one_hot, sample_one_hot
from llmdreamer.types import EnvSpec, Latent
from llmdreamer.utils.errors import ConfigError
from llmdreamer.world_model.model import WorldModel
from llmdreamer.world_model.observations import check_keys

if TYPE_CHECKING:
    from llmdreamer.config import Config


@dataclass(frozen=True)
class Memory:
    """What the agent carries from one step of its n environments to the next."""

    stoch: Tensor  # (n, S, K), of the last row
    action: Tensor  # (n, A), chosen there
    state: Cache  # of the backbone


class Agent(nn.Module):
    """World model and behavior, with their weights in one module.

    A variant of the algorithm is a subclass that names other parts. `learner_type` is called with the agent,
    its optimizer and the configuration of `algo`; None stands for `llmdreamer.training.step.Learner`.

    Raises:
        ConfigError: if the keys, the backbone or its checkpoint are not there.
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
        reads = texts.encoder or texts.sequence
        text_table = make_table(config, backbone.vocabulary) if reads else None
        backbone.vocabulary = None  # the table has it, and takes it to the device
        self.world_model = self.world_model_type(backbone, spec, config.algo, text_table)
        self.behavior = self.behavior_type(self.world_model.features, spec, config.algo)

    def initial(self, streams: int) -> Memory:
        """An empty memory; the first row's `is_first` makes its contents irrelevant."""
        config = self.world_model.config
        like = next(self.parameters())
        return Memory(
            like.new_zeros(streams, config.stochastic_size, config.discrete_size),
            like.new_zeros(streams, self.spec.action_size),
            self.world_model.backbone.initial_cache(streams),
        )

    @torch.no_grad()
    def act(
        self,
        observations: dict[str, Tensor],
        is_first: Tensor,
        memory: Memory,
        *,
        explore: bool,
    ) -> tuple[Tensor, Memory]:
        """Choose an action in each of n environments.

        The observation is taken in before anything is decided: the latent is the posterior's, not
        the prior's.

        Args:
            observations: each (n, ...), of the row just arrived at.
            is_first: (n,), bool.
            explore: sample latent and action as in training; else take the mode of both.

        Returns:
            The action, (n, A), and the memory for the next row.
        """
        world = self.world_model
        state = world.begin(memory.state, is_first, observations)
        token = world.tokens(memory.stoch, memory.action, is_first)
        hidden, state = world.backbone.step(token, state)
        deter = world.deter_norm(hidden)
        posterior = world.infer(world.encoder(observations, 1), deter)
        stoch = sample_one_hot(posterior) if explore else mode_one_hot(posterior)
        features = world.feature(Latent(deter, stoch))
        policy = self.behavior.actor(features)
        action = policy.sample() if explore else policy.mode()
        return action, Memory(stoch, action, state)


def make_agent(config: Config, spec: EnvSpec) -> Agent:
    """The agent of `config`: ours, or the variant that `algo.agent` names.

    Raises:
        ConfigError: as `Agent`, or if that is not there, or makes no agent.
    """
    name = config.algo.agent
    if name is None:
        return Agent(config, spec)
    made = plugins.call("algo.agent", name, config.trust, [config, spec], config.algo.options)
    if not isinstance(made, Agent):
        raise ConfigError(
            f"algo.agent={name}: makes a {type(made).__name__}, not a llmdreamer.agent.agent.Agent"
        )
    return made
