"""Steps the environments with the agent and appends every time step to the replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmdreamer.agent.agent import Agent, AgentState
from llmdreamer.envs import VectorEnv
from llmdreamer.replay import SequenceReplay
from llmdreamer.types import TimeStep
from llmdreamer.utils.errors import Diverged
from llmdreamer.utils.noise import Noise


@dataclass(frozen=True)
class Episode:
    """A completed episode: the undiscounted sum of its rewards, and its number of actions."""

    episode_return: float
    length: int


class Collector:
    """Steps n environments with the agent, or at random, and carries the agent's state between steps.

    Args:
        seed: of the random actions.
        noise: what the agent draws from.
    """

    def __init__(
        self, envs: VectorEnv, agent: Agent, replay: SequenceReplay, seed: int, noise: Noise
    ) -> None:
        self.envs = envs
        self.agent = agent
        self.replay = replay
        self.policy_step = 0
        self._rng = np.random.default_rng(seed)
        self._device = agent.device
        self._time_step: TimeStep | None = None  # None before the first step
        self._noise = noise
        with noise.installed():
            self._agent_state = agent.initial_state(envs.num_envs)
        # Observations that are stored, but not yet in the statistics of the standardizer.
        self._new_observations: list[Mapping[str, NDArray[Any]]] = []
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, np.int64)

    def step(self, *, explore_at_random: bool) -> list[Episode]:
        """Act once in every environment. Return the episodes that ended.

        Raises:
            Diverged: if an action is not finite; it reaches neither environment nor replay.
        """
        time_step = self._current()
        action = self.envs.random_action(self._rng) if explore_at_random else None
        # The agent reads every time step even while actions are random, so that its state is up to date
        # when it takes over.
        action = self._act(time_step, action)
        self._time_step = self.envs.step(action)
        self._store(time_step, action, lost=self._time_step.is_first)
        self.agent.world_model.standardizer.update(self._new_observations)
        self._new_observations.clear()
        self.policy_step += self.envs.num_envs
        return self._finished(self._time_step)

    def _store(
        self, time_step: TimeStep, action: NDArray[np.float32], lost: NDArray[np.bool_]
    ) -> None:
        """Append the time step that the action was chosen in.

        If an environment failed on the action, its episode ends at this step: it is stored as truncated,
        without the action.
        """
        if lost.any():
            time_step = replace(time_step, truncated=time_step.truncated | lost)
            action = np.where(lost[:, None], np.float32(0), action)
        self._append(time_step, action)

    def _append(
        self,
        time_step: TimeStep,
        action: NDArray[np.float32],
        mask: NDArray[np.bool_] | None = None,
    ) -> None:
        """Append a time step to the replay, and keep its observations for the statistics."""
        self.replay.append(time_step, action, mask)
        observations = time_step.observations
        if mask is not None:
            observations = {key: value[mask] for key, value in observations.items()}
        self._new_observations.append(observations)

    def _current(self) -> TimeStep:
        """Return the time step to act on. If an episode has ended, store its last step and reset."""
        if self._time_step is None:
            return self.envs.reset()
        ended = self._time_step.terminated | self._time_step.truncated
        if not ended.any():
            return self._time_step
        self._append(self._time_step, self._no_action(), ended)
        return self.envs.reset(ended)

    def _act(
        self, time_step: TimeStep, random_action: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        observations, is_first = to_tensors(time_step, self._device)
        with self._noise.installed():
            action, self._agent_state = self.agent.act(
                observations, is_first, self._agent_state, explore=True
            )
        if random_action is None:
            chosen = action.cpu().numpy()
            if not np.isfinite(chosen).all():
                raise Diverged("the policy's action is not finite")
            return chosen
        executed = torch.from_numpy(random_action).to(self._device)
        self._agent_state = replace(self._agent_state, action=executed)
        return random_action

    def _finished(self, time_step: TimeStep) -> list[Episode]:
        """Add the rewards of a time step to the episodes. Return the episodes that it ends."""
        self._returns += time_step.reward
        self._lengths += 1
        # An environment that failed begins a new episode; the return of the lost one is dropped.
        self._returns[time_step.is_first] = 0.0
        self._lengths[time_step.is_first] = 0
        ended = np.flatnonzero(time_step.terminated | time_step.truncated)
        episodes = [Episode(float(self._returns[i]), int(self._lengths[i])) for i in ended]
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        return episodes

    def _no_action(self) -> NDArray[np.float32]:
        return np.zeros((self.envs.num_envs, self.envs.spec.action_size), np.float32)

    def state_dict(self) -> dict[str, Any]:
        """Return the state to resume from, as plain types and tensors.

        `envs` is None if the environments have no verified snapshot.
        """
        assert self._time_step is not None, "no step has been taken yet"
        backbone = self.agent.world_model.backbone
        return {
            "policy_step": self.policy_step,
            "rng": self._rng.bit_generator.state,
            "time_step": _to_plain(self._time_step),
            "stoch": self._agent_state.stoch,
            "action": self._agent_state.action,
            "cache": backbone.cache_to_dict(self._agent_state.cache),
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "envs": self.envs.snapshot(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Resume from `state_dict`. The replay has already been truncated to the same policy step.

        Returns:
            True if the current episodes continue. If False, they end as truncated and the next step
            begins new ones, so that no sequence in the replay spans the gap.
        """
        self.policy_step = state["policy_step"]
        self._rng.bit_generator.state = state["rng"]
        time_step = _from_plain(state["time_step"])
        if state["envs"] is None:
            # The next step stores it as the last of its episode and begins another.
            self._time_step = replace(time_step, truncated=~time_step.terminated)
            self.envs.reseed(self.policy_step)
            return False
        self.envs.restore(state["envs"])
        self._time_step = time_step
        self._returns[:] = state["returns"]
        self._lengths[:] = state["lengths"]
        tensors = {name: tensor.to(self._device) for name, tensor in state["cache"].items()}
        self._agent_state = AgentState(
            state["stoch"].to(self._device),
            state["action"].to(self._device),
            self.agent.world_model.backbone.cache_from_dict(tensors),
        )
        return True


def to_tensors(time_step: TimeStep, device: torch.device) -> tuple[dict[str, Tensor], Tensor]:
    """Return observations and `is_first` of a time step on a device."""
    observations = {
        key: torch.from_numpy(value).to(device) for key, value in time_step.observations.items()
    }
    return observations, torch.from_numpy(time_step.is_first).to(device)


SCALAR_FIELDS = ("reward", "is_first", "terminated", "truncated")


def _to_plain(time_step: TimeStep) -> dict[str, Any]:
    scalars = {name: torch.from_numpy(getattr(time_step, name).copy()) for name in SCALAR_FIELDS}
    observations = {
        key: torch.from_numpy(value.copy()) for key, value in time_step.observations.items()
    }
    return {"observations": observations, **scalars}


def _from_plain(state: dict[str, Any]) -> TimeStep:
    observations = {key: value.cpu().numpy() for key, value in state["observations"].items()}
    return TimeStep(observations, *(state[name].cpu().numpy() for name in SCALAR_FIELDS))
