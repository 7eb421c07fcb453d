"""Everything of a run that moves, built from its configuration, saved and restored as one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmdreamer.envs import make_vector
from llmdreamer.errors import ConfigError
from llmdreamer.replay import ReplayCredit, SequenceReplay
from llmdreamer.training.agent import Agent
from llmdreamer.training.checkpoint import Checkpoints
from llmdreamer.training.clock import Clock, counted
from llmdreamer.training.collect import Collector, Episode
from llmdreamer.training.optimizer import AgentOptimizer
from llmdreamer.training.step import Learner
from llmdreamer.types import Metrics

if TYPE_CHECKING:
    from llmdreamer.config import Config

log = logging.getLogger(__name__)


class Trainer:
    """Environments, replay, agent and optimiser of one run."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        torch.manual_seed(config.seed)
        algo = config.algo
        assert algo.learning_starts is not None, "config.load fills it in"
        self.config = config
        self.prefill = algo.learning_starts
        self.device = torch_device(config.device)
        self.envs = make_vector(config.env, config.env.num_envs, config.seed)
        self.agent = Agent(config, self.envs.spec).to(self.device)
        self.replay = SequenceReplay(
            run_dir / "replay",
            self.envs.spec,
            config.env.num_envs,
            config.replay.capacity,
            algo.per_rank_sequence_length,
            config.seed,
        )
        total_updates = int(algo.replay_ratio * (algo.total_steps - self.prefill))
        self.optimizer = AgentOptimizer(self.agent, algo.optimizer, total_updates)
        self.learner = Learner(self.agent, self.optimizer, algo)
        self.credit = ReplayCredit(algo.replay_ratio)
        self.collector = Collector(self.envs, self.agent, self.replay, config.seed)
        self.clock = Clock()
        # Counted at the run's first update and kept: counting takes other kernels, which round
        # differently, so a resumed run must not do it again.
        self.flops_per_update = 0.0

    @property
    def policy_step(self) -> int:
        return self.collector.policy_step

    @property
    def env_step(self) -> int:
        return self.policy_step * self.config.env.action_repeat

    @property
    def updates(self) -> int:
        return self.optimizer.updates

    def live(self) -> list[Episode]:
        """One policy step in every environment; the episodes that ended by it."""
        with self.clock.stage("environment"):
            return self.collector.step(explore_at_random=self.policy_step < self.prefill)

    def learn(self) -> list[Metrics]:
        """The gradient updates that the replay ratio owes by now."""
        if not self.replay.ready:
            return []
        due = self.credit.due(self.policy_step, self.prefill)
        return [self._update() for _ in range(due)]

    def _update(self) -> Metrics:
        with self.clock.stage("replay"):
            batch = self.replay.sample(self.config.algo.per_rank_batch_size).to(self.device)
        with self.clock.stage("update"):
            if self.flops_per_update > 0:
                return self.learner.update(batch)
            metrics, self.flops_per_update = counted(lambda: self.learner.update(batch))
            return metrics

    def state_dict(self) -> dict[str, Any]:
        """All that moves; the replay's rows are on the disk when this returns."""
        self.replay.flush()
        state = {
            "agent": self.agent.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "credit": self.credit.state_dict(),
            "replay": self.replay.state_dict(),
            "collector": self.collector.state_dict(),
            "flops_per_update": self.flops_per_update,
            "torch_rng": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state(self.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`; the replay is cut back to where it was.

        Raises:
            ConfigError: if the checkpoint is of an agent of another shape.
        """
        load_agent(self.agent, state["agent"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.credit.load_state_dict(state["credit"])
        self.flops_per_update = state["flops_per_update"]
        self.replay.load_state_dict(state["replay"])
        if not self.collector.load_state_dict(state["collector"]):
            log.warning(
                "%s has no verified snapshot: going on at an episode boundary", self.config.env.id
            )
        torch.set_rng_state(state["torch_rng"].cpu())
        if "cuda_rng" in state:
            torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)

    def counts(self) -> dict[str, float]:
        """Parameters: of the whole agent, of its backbone, and those of either that train."""
        return {
            "parameters/total": _count(self.agent, trainable=False),
            "parameters/trainable": _count(self.agent, trainable=True),
            "parameters/backbone": _count(self.agent.world_model.backbone, trainable=False),
            "parameters/backbone_trainable": _count(
                self.agent.world_model.backbone, trainable=True
            ),
        }

    def adapter_norms(self) -> dict[str, float]:
        """`lora/LAYER` of each layer that has an adapter: see `lora.adapter_norms`."""
        if not self.config.peft:
            return {}
        # peft and transformers take seconds to import; here they are.
        from llmdreamer.backbones.lora import adapter_norms

        norms = adapter_norms(self.agent.world_model.backbone)
        return {f"lora/{layer}": norm for layer, norm in norms.items()}

    def close(self) -> None:
        self.envs.close()
        self.replay.close()


def load_agent(agent: Agent, state: dict[str, Any]) -> None:
    """Load an agent's weights.

    Raises:
        ConfigError: naming the first weight that does not fit.
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
    """The agent of a run's newest checkpoint, without anything that trains it.

    Raises:
        ConfigError: if there is no undamaged checkpoint, or it is of another agent.
    """
    device = torch_device(config.device)
    state = checkpoints.newest(device)["trainer"]["agent"]
    envs = make_vector(config.env, 1, config.seed)
    envs.close()
    agent = Agent(config, envs.spec).to(device)
    load_agent(agent, state)
    return agent


def torch_device(name: str) -> torch.device:
    """The device of `device=name`; `auto` is CUDA where there is one.

    Raises:
        ConfigError: if it is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if (device.index or 0) >= there:
            raise ConfigError(
                f"device={name}: this machine has {there} CUDA devices; device=cpu works"
            )
    return device


def _count(module: nn.Module, *, trainable: bool) -> float:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)
