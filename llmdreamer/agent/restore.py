"""Restores an agent from a checkpoint, without the rest of the training state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmdreamer.agent.agent import Agent, make_agent
from llmdreamer.envs import make_vector
from llmdreamer.utils.device import torch_device
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.checkpoint.files import Checkpoints
    from llmdreamer.config import Config


def load_agent(agent: Agent, state: dict[str, Any]) -> None:
    """Load an agent's weights.

    Raises:
        ConfigError: if the weights do not match; the message names the first one that differs.
    """
    own = agent.state_dict()
    if own.keys() != state.keys():
        name = sorted(own.keys() ^ state.keys())[0]
        raise ConfigError(
            f"the checkpoint is of another kind of agent: only one of them has {name}"
        )
    for name, value in own.items():
        if value.shape != state[name].shape:
            raise ConfigError(
                f"the checkpoint is of another size: {name} is {tuple(state[name].shape)} there,"
                f" {tuple(value.shape)} in the configuration"
            )
    agent.load_state_dict(state)


def restore_agent(config: Config, checkpoints: Checkpoints) -> Agent:
    """Build the agent of a run's newest checkpoint.

    Raises:
        ConfigError: if there is no undamaged checkpoint, or it is of another agent.
    """
    device = torch_device(config.device)
    state = checkpoints.newest(device)["trainer"]["agent"]
    envs = make_vector(config.env, 1, config.seed)
    envs.close()
    agent = make_agent(config, envs.spec).to(device)
    load_agent(agent, state)
    return agent
