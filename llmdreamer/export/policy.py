"""What a run has learned to do, in files of data that act without the run, its environment or the hub."""

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

CONFIG, SPACES, WEIGHTS = "config.yaml", "spaces.json", "agent.safetensors"

# What reading files that are damaged, or something else, raises, beside safetensors' own error.
_UNREADABLE = (OSError, KeyError, TypeError, ValueError, RuntimeError)


class Policy:
    """An agent that lives one episode at a time: an observation in, an action out, its memory between.

    Observations and actions are the environment's own, as its `step` gives and takes them. Actions are
    taken as in the run's evaluations: the mode of the policy, or sampled with `eval.greedy=false`.
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
        """Read what `export` wrote. Weights are tensors and nothing else; no code comes with them.

        Args:
            trust: packages whose code may run, where the policy is not of ours alone.

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

        config = from_yaml(folder / CONFIG, trust)
        device = torch_device("auto")
        try:
            spaces = json.loads((folder / SPACES).read_text())
            seen, done = (space_from_plain(spaces[name]) for name in ("observation", "action"))
            weights = load_file(folder / WEIGHTS, str(device))
        except (*_UNREADABLE, SafetensorError) as error:
            told = str(error).partition("\n")[0]
            raise ConfigError(f"{folder}: these are not the files of a policy ({told})") from error
        keys, actions = (
            observation_encodings(seen, *observation_options(config.env)),
            action_encoding(done),
        )
        agent = make_agent(config, make_env_spec(keys, actions, config.env.action_repeat)).to(
            device
        )
        load_agent(agent, weights)
        is_plain = "dict" not in spaces["observation"]
        return cls(agent, keys, actions, is_plain=is_plain, greedy=config.eval.greedy)

    def reset(self) -> None:
        """An episode begins with the next observation."""
        self._state = self.agent.initial_state(1)
        self._is_first = True

    def act(self, observation: Any) -> Any:
        """The action for an observation, of the episode that goes on or has just begun.

        Raises:
            ValueError: if the observation is not of the environment's space.
        """
        import numpy as np
        import torch

        parts = {next(iter(self._keys)): observation} if self._is_plain else observation
        if not isinstance(parts, Mapping) or self._keys.keys() - parts.keys():
            raise ValueError(f"an observation of the keys {sorted(self._keys)} is needed")
        device = next(self.agent.parameters()).device
        seen = {
            key: torch.from_numpy(np.ascontiguousarray(part.encode(parts[key])))[None].to(device)
            for key, part in self._keys.items()
        }
        is_first = torch.tensor([self._is_first], device=device)
        action, self._state = self.agent.act(seen, is_first, self._state, explore=not self._greedy)
        self._is_first = False
        return self._actions.decode(action[0].cpu().numpy())


def export(run_dir: Path, folder: Path, trust: Sequence[str] = ()) -> dict[str, Path]:
    """Write the policy of a run's newest checkpoint into `folder`; the files by name.

    Args:
        trust: packages whose code the run may name.

    Raises:
        ConfigError: if there is no checkpoint, or the policy needs more than data can hold.
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
    (folder / CONFIG).write_text(to_yaml(_alone(config, agent)))
    (folder / SPACES).write_text(json.dumps(spaces, indent=1))
    # Copies, because safetensors refuses tensors that share memory, or lie in it in another order.
    weights = {name: part.clone().contiguous() for name, part in agent.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    return {name: folder / name for name in (CONFIG, SPACES, WEIGHTS)}


def _alone(config: Config, agent: Agent) -> Config:
    """The configuration without checkpoints elsewhere: a pretrained model by its shape."""
    algo, hf = config.algo, config.algo.world_model.hf_model
    if not hf.from_pretrained:
        return config
    if algo.text_keys.encoder or algo.text_keys.sequence:
        raise ConfigError(
            "pretrained=true with algo.text_keys: its table of words is no part of a policy yet"
        )
    if config.backbone.factory is not None:
        raise ConfigError(
            f"pretrained=true with backbone.factory={config.backbone.factory}: only its maker knows"
            " how to make it without its checkpoint"
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


# Of a model's configuration what says where it is from, or of words that are not there.
_NOT_SHAPE = {"model_type", "architectures", "transformers_version", "dtype", "vocab_size"}
_NOT_SHAPE |= {
    "_name_or_path",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "task_specific_params",
}
