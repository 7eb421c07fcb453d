"""A policy exported from a run: data files that act without the run, its environment or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdreamer.config import from_yaml, read_run_config, to_yaml
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from llmdreamer.agent.agent import Agent
    from llmdreamer.config import Config
    from llmdreamer.envs.actions import ActionEncoding
    from llmdreamer.envs.observations import Observations
    from llmdreamer.envs.simulator import EnvDescription

CONFIG_FILE, SPACES_FILE, WEIGHTS_FILE = "config.yaml", "spaces.json", "agent.safetensors"
MODEL_FOLDER, ADAPTER_FOLDER = "backbone", "adapter"
"""Folders of an export with a transformers model: the model without adapters, and the adapters."""
MODEL_PREFIX = "world_model.backbone.model."
"""Start of the names that its weights have in the agent."""

# Errors of reading damaged or other files, beside those of safetensors.
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, RuntimeError)


class Policy:
    """Acts in one episode at a time and keeps the recurrent state between calls.

    Observations and actions have the form of the environment's `step`. Actions are chosen as in the run's
    evaluations: the mode of the policy, or samples with `eval.greedy=false`.
    """

    def __init__(
        self,
        agent: Agent,
        observations: Observations,
        actions: ActionEncoding,
        *,
        greedy: bool,
    ) -> None:
        self.agent = agent.eval()
        self._observations, self._actions = observations, actions
        self._greedy = greedy
        self.reset()

    @classmethod
    def load(cls, folder: Path, trust: Sequence[str] = ()) -> Policy:
        """Load a folder that `export` wrote. The files hold data only, no code.

        Args:
            trust: packages whose code may run, if the policy uses code of other packages.

        Raises:
            ConfigError: if the files are not those of a policy.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from llmdreamer.agent.restore import load_agent
        from llmdreamer.utils.device import torch_device

        config = from_yaml(folder / CONFIG_FILE, trust)
        device = torch_device("auto")
        try:
            spaces = json.loads((folder / SPACES_FILE).read_text())
            agent = _make_agent(config, spaces).to(device)
            weights = load_file(folder / WEIGHTS_FILE, str(device))
            if (folder / MODEL_FOLDER).is_dir():
                weights |= _read_model(agent, folder)
        except (*_UNREADABLE, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"{folder}: not the files of a policy ({reason})") from error
        load_agent(agent, weights)
        return cls.make(agent, config, spaces)

    @classmethod
    def make(cls, agent: Agent, config: Config, spaces: Mapping[str, Any]) -> Policy:
        """Return the policy of an agent, for an environment with these spaces."""
        description = _describe(config, spaces)
        greedy = config.eval.greedy
        return cls(agent, description.observations, description.actions, greedy=greedy)

    def reset(self) -> None:
        """Start a new episode with the next observation."""
        self._state = self.agent.initial_state(1)
        self._is_first = True

    def act(self, observation: Any) -> Any:
        """Return the action for the next observation of the episode.

        Raises:
            ValueError: if the observation does not fit the environment's space.
        """
        import numpy as np
        import torch

        device = next(self.agent.parameters()).device
        observations = {
            key: torch.from_numpy(np.ascontiguousarray(array))[None].to(device)
            for key, array in self._observations.encode(observation).items()
        }
        is_first = torch.tensor([self._is_first], device=device)
        action, self._state = self.agent.act(
            observations, is_first, self._state, explore=not self._greedy
        )
        self._is_first = False
        return self._actions.decode(action[0].cpu().numpy())


@dataclass(frozen=True)
class TrainedPolicy:
    """The agent of a run, with what it takes to use it without the run."""

    config: Config
    agent: Agent
    spaces: dict[str, Any]  # of observations and actions, as JSON data
    policy_step: int  # of its checkpoint

    def policy(self) -> Policy:
        """Return the policy, ready to act."""
        return Policy.make(self.agent, self.config, self.spaces)


def read_trained(
    run_dir: Path, trust: Sequence[str] = (), checkpoints: str = "checkpoints"
) -> TrainedPolicy:
    """Read the newest policy of a run.

    Args:
        trust: packages whose code the run may name.
        checkpoints: folder in `run_dir`: of its checkpoints, or of its best policy.

    Raises:
        ConfigError: if there is no checkpoint.
    """
    config = read_run_config(run_dir, trust)
    from llmdreamer.agent.restore import restore_agent
    from llmdreamer.checkpoint.files import Checkpoints
    from llmdreamer.envs.factory import make_env
    from llmdreamer.envs.spaces import space_to_plain

    saved = Checkpoints(run_dir / checkpoints, config.checkpoint.keep)
    agent = restore_agent(config, saved)
    env = make_env(config.env, False)
    spaces = {
        "observation": space_to_plain(env.observation_space),
        "action": space_to_plain(env.action_space),
    }
    env.close()
    return TrainedPolicy(config, agent, spaces, saved.newest_step)


def export(
    run_dir: Path, folder: Path, trust: Sequence[str] = (), checkpoints: str = "checkpoints"
) -> dict[str, Path]:
    """Write a policy of a run into `folder`, with all weights in one file; return the files by name.

    Args:
        trust, checkpoints: as in `read_trained`.

    Raises:
        ConfigError: if there is no checkpoint, or the policy cannot be stored as data.
    """
    trained = read_trained(run_dir, trust, checkpoints)
    return write_policy(trained, folder, trained.agent.state_dict())


def write_policy(
    trained: TrainedPolicy, folder: Path, weights: Mapping[str, Tensor]
) -> dict[str, Path]:
    """Write configuration, spaces and `weights` into `folder`; return the files by name."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = _without_checkpoint(trained.config, trained.agent)
    (folder / CONFIG_FILE).write_text(to_yaml(config))
    (folder / SPACES_FILE).write_text(json.dumps(trained.spaces, indent=1))
    # safetensors refuses tensors that share memory or are not contiguous.
    copies = {name: tensor.clone().contiguous() for name, tensor in weights.items()}
    save_file(copies, folder / WEIGHTS_FILE)
    return {name: folder / name for name in (CONFIG_FILE, SPACES_FILE, WEIGHTS_FILE)}


def _describe(config: Config, spaces: Mapping[str, Any]) -> EnvDescription:
    from llmdreamer.envs.actions import action_encoding
    from llmdreamer.envs.factory import observation_options
    from llmdreamer.envs.observations import observation_encodings
    from llmdreamer.envs.simulator import EnvDescription
    from llmdreamer.envs.spaces import space_from_plain

    observation_space = space_from_plain(spaces["observation"])
    observations = observation_encodings(observation_space, *observation_options(config.env))
    actions = action_encoding(space_from_plain(spaces["action"]))
    return EnvDescription(observations, actions, render_modes=())


def _make_agent(config: Config, spaces: Mapping[str, Any]) -> Agent:
    """Build the agent for the spaces, with fresh weights."""
    from llmdreamer.agent.agent import make_agent
    from llmdreamer.envs.vector import make_env_spec

    return make_agent(config, make_env_spec(_describe(config, spaces), config.env.action_repeat))


def _read_model(agent: Agent, folder: Path) -> dict[str, Tensor]:
    """Load the model and the adapters in `folder` into the agent; return their weights by name."""
    from llmdreamer.backbones.saved_model import load_saved

    load_saved(agent.world_model.backbone, folder / MODEL_FOLDER, folder / ADAPTER_FOLDER)
    return {
        name: value for name, value in agent.state_dict().items() if name.startswith(MODEL_PREFIX)
    }


def _without_checkpoint(config: Config, agent: Agent) -> Config:
    """Return the configuration with a pretrained model described by its shape alone."""
    from llmdreamer.world_model.observations import expand_keys

    algo, hf = expand_keys(config.algo, agent.spec), config.algo.world_model.hf_model
    if not hf.from_pretrained:
        return config
    if algo.text_keys.encoder or algo.text_keys.sequence:
        raise ConfigError(
            "pretrained=true with algo.text_keys: the table of word embeddings cannot be exported"
        )
    if config.backbone.factory is not None:
        raise ConfigError(
            f"pretrained=true with backbone.factory={config.backbone.factory}: this backbone can"
            " only be built from its checkpoint"
        )
    model: Any = agent.world_model.backbone.model
    shape = {k: v for k, v in model.config.to_diff_dict().items() if k not in _NOT_SHAPE}
    hf = replace(hf, from_pretrained=False)
    world_model = replace(algo.world_model, hf_model=hf)
    optimizer = replace(algo.optimizer, freeze_backbone_updates=0)
    backbone = replace(
        config.backbone, name="hf", path=None, model_type=model.config.model_type, config=shape
    )
    algo = replace(algo, world_model=world_model, optimizer=optimizer)
    return replace(config, algo=algo, backbone=backbone)


# Keys of a model configuration that describe its origin, or the vocabulary, which is dropped.
_NOT_SHAPE = {"model_type", "architectures", "transformers_version", "dtype", "vocab_size"}
_NOT_SHAPE |= {
    "_name_or_path",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "task_specific_params",
}
