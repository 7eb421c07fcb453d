"""Lives in the environments: chooses actions, and writes what happens into the replay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmdreamer.agent.agent import Agent, Memory
from llmdreamer.envs import VectorEnv
from llmdreamer.replay import SequenceReplay
from llmdreamer.types import TimeStep
from llmdreamer.utils.errors import Diverged


@dataclass(frozen=True)
class Episode:
    """One that has just ended: the undiscounted sum of its rewards, and its actions."""

    episode_return: float
    length: int


class Collector:
    """Steps n environments with the agent, or at random, and keeps the agent's memory between."""

    def __init__(self, envs: VectorEnv, agent: Agent, replay: SequenceReplay, seed: int) -> None:
        self.envs = envs
        self.agent = agent
        self.replay = replay
        self.policy_step = 0
        self._rng = np.random.default_rng(seed)
        self._device = next(agent.parameters()).device
        self._rows: TimeStep | None = None  # before the first step
        self._memory = agent.initial(envs.num_envs)
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, np.int64)

    def step(self, *, explore_at_random: bool) -> list[Episode]:
        """Act once in every environment; the episodes that ended by it.

        Raises:
            Diverged: if an action is not finite; neither environment nor replay sees it.
        """
        rows = self._begin()
        action = self.envs.random_action(self._rng) if explore_at_random else None
        # The agent takes every row in even while actions are random: its memory is then right
        # when its own actions begin.
        action = self._act(rows, action)
        self._rows = self.envs.step(action)
        self._store(rows, action, cut_off=self._rows.is_first)
        self.policy_step += self.envs.num_envs
        return self._count(self._rows)

    def _store(
        self, rows: TimeStep, action: NDArray[np.float32], cut_off: NDArray[np.bool_]
    ) -> None:
        """Write the rows acted on. Where the environment was lost over the action, the row is its
        episode's last: truncated, and nothing follows from what was tried there."""
        if cut_off.any():
            rows = replace(rows, truncated=rows.truncated | cut_off)
            action = np.where(cut_off[:, None], np.float32(0), action)
        self.replay.append(rows, action)

    def _begin(self) -> TimeStep:
        """The rows to act on: where an episode has ended its last row is stored, and one begins."""
        if self._rows is None:
            return self.envs.reset()
        over = self._rows.terminated | self._rows.truncated
        if not over.any():
            return self._rows
        self.replay.append(self._rows, self._no_action(), over)
        return self.envs.reset(over)

    def _act(self, rows: TimeStep, given: NDArray[np.float32] | None) -> NDArray[np.float32]:
        observations, is_first = to_tensors(rows, self._device)
        action, self._memory = self.agent.act(observations, is_first, self._memory, explore=True)
        if given is None:
            chosen = action.cpu().numpy()
            if not np.isfinite(chosen).all():
                raise Diverged("the policy's action is not finite")
            return chosen
        self._memory = replace(self._memory, action=torch.from_numpy(given).to(self._device))
        return given

    def _count(self, rows: TimeStep) -> list[Episode]:
        self._returns += rows.reward
        self._lengths += 1
        # An episode that was cut off has no return worth telling.
        self._returns[rows.is_first] = 0.0
        self._lengths[rows.is_first] = 0
        over = np.flatnonzero(rows.terminated | rows.truncated)
        ended = [Episode(float(self._returns[i]), int(self._lengths[i])) for i in over]
        self._returns[over] = 0.0
        self._lengths[over] = 0
        return ended

    def _no_action(self) -> NDArray[np.float32]:
        return np.zeros((self.envs.num_envs, self.envs.spec.action_size), np.float32)

    def state_dict(self) -> dict[str, Any]:
        """All that moves, as plain types and tensors. Where the environments have no verified
        snapshot, theirs is None."""
        assert self._rows is not None, "nothing has moved yet"
        backbone = self.agent.world_model.backbone
        return {
            "policy_step": self.policy_step,
            "rng": self._rng.bit_generator.state,
            "rows": _to_plain(self._rows),
            "stoch": self._memory.stoch,
            "action": self._memory.action,
            "backbone": backbone.cache_to_dict(self._memory.state),
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "envs": self.envs.snapshot(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on from `state_dict`; the replay is already cut back to the same moment.

        Returns:
            Whether the episodes under way go on. If not, they are stored as truncated and new ones
            begin: no sequence in the replay runs across the gap.
        """
        self.policy_step = state["policy_step"]
        self._rng.bit_generator.state = state["rng"]
        rows = _from_plain(state["rows"])
        if state["envs"] is None:
            over = replace(rows, truncated=~rows.terminated)
            self.replay.append(over, self._no_action())
            self.envs.seed_anew(self.policy_step)
            return False
        self.envs.restore(state["envs"])
        self._rows = rows
        self._returns[:] = state["returns"]
        self._lengths[:] = state["lengths"]
        memory = {name: part.to(self._device) for name, part in state["backbone"].items()}
        self._memory = Memory(
            state["stoch"].to(self._device),
            state["action"].to(self._device),
            self.agent.world_model.backbone.cache_from_dict(memory),
        )
        return True


def to_tensors(rows: TimeStep, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Observations and `is_first` of n rows, where the agent is."""
    observations = {
        key: torch.from_numpy(value).to(device) for key, value in rows.observations.items()
    }
    return observations, torch.from_numpy(rows.is_first).to(device)


FLAGS = ("reward", "is_first", "terminated", "truncated")


def _to_plain(rows: TimeStep) -> dict[str, Any]:
    flags = {name: torch.from_numpy(getattr(rows, name).copy()) for name in FLAGS}
    seen = {key: torch.from_numpy(value.copy()) for key, value in rows.observations.items()}
    return {"observations": seen, **flags}


def _from_plain(state: dict[str, Any]) -> TimeStep:
    seen = {key: value.cpu().numpy() for key, value in state["observations"].items()}
    return TimeStep(seen, *(state[name].cpu().numpy() for name in FLAGS))
