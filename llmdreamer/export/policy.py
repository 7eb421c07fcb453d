"""A policy exported from a run: data files that act without the run, its environment or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmdreamer.config import from_yaml, read_run_config, to_yaml
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.agent.agent import Agent
    from llmdreamer.config import Config
    from llmdreamer.envs.actions import ActionEncoding
    from llmdreamer.envs.observations import ObservationEncoding

CONFIG_FILE, SPACES_FILE, WEIGHTS_FILE = "config.yaml", "spaces.json", "agent.safetensors"

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
        keys: Mapping[str, ObservationEncoding],
        actions: ActionEncoding,
        *,
        is_plain: bool,
        greedy: bool,
    ) -> None:
        self.agent = agent.eval()
        self._keys, self._actions, self._is_plain = keys, actions, is_plain
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

        from llmdreamer.agent.agent import make_agent
        from llmdreamer.agent.restore import load_agent
        from llmdreamer.envs.actions import action_encoding
        from llmdreamer.envs.factory import observation_options
        from llmdreamer.envs.observations import observation_encodings
        from llmdreamer.envs.spaces import space_from_plain
        from llmdreamer.envs.vector import make_env_spec
        from llmdreamer.utils.device import torch_device

        config = from_yaml(folder / CONFIG_FILE, trust)
        device = torch_device("auto")
        try:
            spaces = json.loads((folder / SPACES_FILE).read_text())
            observation_space = space_from_plain(spaces["observation"])
            action_space = space_from_plain(spaces["action"])
            weights = load_file(folder / WEIGHTS_FILE, str(device))
        except (*_UNREADABLE, SafetensorError) as error:
            reason = str(error).partition("\n")[0]
            raise ConfigError(f"{folder}: not the files of a policy ({reason})") from error
        keys = observation_encodings(observation_space, *observation_options(config.env))
        actions = action_encoding(action_space)
        spec = make_env_spec(keys, actions, config.env.action_repeat)
        agent = make_agent(config, spec).to(device)
        load_agent(agent, weights)
        is_plain = "dict" not in spaces["observation"]
        return cls(agent, keys, actions, is_plain=is_plain, greedy=config.eval.greedy)

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

        values = {next(iter(self._keys)): observation} if self._is_plain else observation
        if not isinstance(values, Mapping) or self._keys.keys() - values.keys():
            raise ValueError(f"the observation needs the keys {sorted(self._keys)}")
        device = next(self.agent.parameters()).device
        observations = {
            key: torch.from_numpy(np.ascontiguousarray(kind.encode(values[key])))[None].to(device)
            for key, kind in self._keys.items()
        }
        is_first = torch.tensor([self._is_first], device=device)
        action, self._state = self.agent.act(
            observations, is_first, self._state, explore=not self._greedy
        )
        self._is_first = False
        return self._actions.decode(action[0].cpu().numpy())


def export(run_dir: Path, folder: Path, trust: Sequence[str] = ()) -> dict[str, Path]:
    """Write the policy of a run's newest checkpoint into `folder`; return the files by name.

    Args:
        trust: packages whose code the run may name.

    Raises:
        ConfigError: if there is no checkpoint, or the policy cannot be stored as data.
    """
    config = read_run_config(run_dir, trust)
    from safetensors.torch import save_file

    from llmdreamer.agent.restore import restore_agent
    from llmdreamer.checkpoint.files import Checkpoints
    from llmdreamer.envs.factory import make_env
    from llmdreamer.envs.spaces import space_to_plain

    agent = restore_agent(config, Checkpoints(run_dir / "checkpoints", config.checkpoint.keep))
    env = make_env(config.env, False)
    spaces = {
        "observation": space_to_plain(env.observation_space),
        "action": space_to_plain(env.action_space),
    }
    env.close()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(to_yaml(_without_checkpoint(config, agent)))
    (folder / SPACES_FILE).write_text(json.dumps(spaces, indent=1))
    # safetensors refuses tensors that share memory or are not contiguous.
    weights = {name: tensor.clone().contiguous() for name, tensor in agent.state_dict().items()}
    save_file(weights, folder / WEIGHTS_FILE)
    return {name: folder / name for name in (CONFIG_FILE, SPACES_FILE, WEIGHTS_FILE)}


def _without_checkpoint(config: Config, agent: Agent) -> Config:
    """Return the configuration with a pretrained model described by its shape alone."""
    algo, hf = config.algo, config.algo.world_model.hf_model
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
