"""Compares an agent's predictions with the truth: ends, values, and advantages of single actions."""

from __future__ import annotations

import copy
import math
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmdreamer.agent.agent import Agent, AgentState
from llmdreamer.agent.collector import to_tensors
from llmdreamer.backbones import Cache
from llmdreamer.behavior.imagine import roll_out
from llmdreamer.evaluation.lanes import Lanes, repeat_step
from llmdreamer.nn.functional import lambda_return
from llmdreamer.types import Latent, TimeStep
from llmdreamer.utils.noise import Noise
from llmdreamer.utils.seeds import SeedOffset

if TYPE_CHECKING:
    from llmdreamer.config import AlgoConfig, Config

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

NEGLIGIBLE = 0.05
"""A true return is followed until the discount is below this; the critic's value stands for the rest."""


@dataclass(frozen=True)
class Visits:
    """The n time steps of some episodes, and what the agent predicted at each. Arrays are (n,)."""

    value: Array  # of the critic
    true_return: Array  # discounted, from this step on
    continue_prob: Array  # P(continue) of the continue head
    terminated: Flags


@dataclass(frozen=True)
class ActionValues:
    """Discounted returns of one action in one state, of n true and of n imagined trajectories: (n,)."""

    true: Array
    imagined: Array


@dataclass(frozen=True)
class Advantage:
    """The policy's most likely action beside another one, in one state of an episode."""

    step: int  # policy steps since the episode began
    value: float  # of the critic, mean over samples of the latent
    mode: ActionValues
    other: ActionValues

    @property
    def true(self) -> tuple[float, float]:
        """Mean and standard error of the true difference, mode minus other."""
        return _difference(self.mode.true, self.other.true)

    @property
    def imagined(self) -> tuple[float, float]:
        """Mean and standard error of the imagined difference, mode minus other."""
        return _difference(self.mode.imagined, self.other.imagined)


@dataclass(frozen=True)
class Diagnosis:
    """Predictions of an agent beside the truth."""

    visits: Visits
    advantages: list[Advantage]  # empty if the environment has no verified snapshot


def diagnose(
    agent: Agent, config: Config, episodes: int, states: int, branches: int, seed: int
) -> Diagnosis:
    """Compare predicted and true ends, values and advantages. The policy samples, as in training.

    Args:
        episodes: new episodes, for ends and values.
        states: largest number of states of one more episode, for advantages.
        branches: true and imagined trajectories of each action in each of these states, >= 2.

    Raises:
        EnvError: if an environment fails.
    """
    training = agent.training
    agent.eval()
    noise = Noise(seed + SeedOffset.OPEN_LOOP, agent.device)
    probe = Probe(agent, config.algo, noise)
    lanes = partial(Lanes, config.env, seed=seed + SeedOffset.OPEN_LOOP)
    try:
        with agent.world_model.backbone.merged(), torch.no_grad():
            with closing(lanes(episodes)) as several:
                visits = probe.visits(several)
            with closing(lanes(1)) as single:
                episode = probe.episode(single, np.random.default_rng(seed))
            if not episode:
                return Diagnosis(visits, [])
            with closing(lanes(branches)) as several:
                return Diagnosis(visits, probe.advantages(episode, several, states))
    finally:
        agent.train(training)


def true_returns(reward: Array, value: Array, terminated: Flags, gamma: float) -> Array:
    """Discounted returns of the consecutive time steps of one episode, (T,).

    Args:
        reward: (T,), received on arriving at each step.
        value: (T,). The last one bootstraps an episode that has not terminated.
        terminated: (T,), of which only the last may be true.
    """
    returns = np.empty(len(reward))
    returns[-1] = 0.0 if terminated[-1] else value[-1]
    for t in range(len(reward) - 2, -1, -1):
        returns[t] = reward[t + 1] + gamma * returns[t + 1]
    return returns


@dataclass(frozen=True)
class Track:
    """Consecutive time steps of n lanes. Arrays are (T, n)."""

    reward: Array
    value: Array
    continue_prob: Array
    terminated: Flags
    fresh: Flags  # False after a lane's last time step

    def lane(self, i: int) -> Track:
        """Return the time steps of one lane alone. Its arrays are (T_i,)."""
        steps = self.fresh[:, i]
        return Track(*(array[steps, i] for array in vars(self).values()))


@dataclass(frozen=True)
class Moment:
    """One time step of the episode whose states are examined. Actions are (1, A)."""

    time_step: TimeStep
    snapshot: dict[str, Any]
    action: Tensor  # taken
    mode: Tensor  # the policy's most likely one
    other: Tensor  # a random one, not the mode


@dataclass(frozen=True)
class Probe:
    """Follows an agent's policy in environments and in imagination. Its methods expect `torch.no_grad`."""

    agent: Agent
    algo: AlgoConfig
    noise: Noise

    def visits(self, lanes: Lanes) -> Visits:
        """Follow the policy for one episode in each lane."""
        count = len(lanes.over)
        with self.noise.installed():
            state = self.agent.initial_state(count)
        track = self._follow(lanes, lanes.reset(), state)
        parts = [track.lane(i) for i in range(count)]
        returns = [
            true_returns(part.reward, part.value, part.terminated, self.algo.gamma)
            for part in parts
        ]
        return Visits(
            np.concatenate([part.value for part in parts]),
            np.concatenate(returns),
            np.concatenate([part.continue_prob for part in parts]),
            np.concatenate([part.terminated for part in parts]),
        )

    def advantages(self, episode: list[Moment], lanes: Lanes, states: int) -> list[Advantage]:
        """Compare two actions in evenly spaced states of an episode.

        The lanes repeat the episode's observations and actions, each with its own samples of the latents.
        """
        branches, device = len(lanes.over), self.agent.device
        # The last time step has no action.
        chosen = np.unique(np.linspace(0, len(episode) - 2, states).round().astype(int)).tolist()
        with self.noise.installed():
            state = self.agent.initial_state(branches)
        advantages = []
        for step, moment in enumerate(episode[: chosen[-1] + 1]):
            observations, is_first = to_tensors(repeat_step(moment.time_step, branches), device)
            with self.noise.installed():
                latent, cache = self.agent.infer(observations, is_first, state, explore=True)
            if step in chosen:
                value = float(self._value(self.agent.world_model.feature(latent)).mean())
                mode, other = (
                    self._values_of(action, moment, lanes, latent, cache)
                    for action in (moment.mode, moment.other)
                )
                advantages.append(Advantage(step, value, mode, other))
            state = AgentState(latent.stoch, moment.action.expand(branches, -1), cache)
        return advantages

    def episode(self, lanes: Lanes, rng: np.random.Generator) -> list[Moment]:
        """Follow the policy for one episode in a single lane. Empty if the lane has no snapshots."""
        device = self.agent.device
        time_step = lanes.reset()
        with self.noise.installed():
            state = self.agent.initial_state(1)
        moments: list[Moment] = []
        while (snapshot := lanes.snapshot()) is not None:
            observations, is_first = to_tensors(time_step, device)
            with self.noise.installed():
                latent, cache = self.agent.infer(observations, is_first, state, explore=True)
                policy = self.agent.behavior.actor(self.agent.world_model.feature(latent))
                action, mode = policy.sample(), policy.mode()
            other = torch.from_numpy(lanes.random_action(rng, unlike=mode.cpu().numpy()))
            moments.append(Moment(time_step, snapshot, action, mode, other.to(device)))
            if lanes.over[0]:
                return moments
            state = AgentState(latent.stoch, action, cache)
            time_step = lanes.step(action.cpu().numpy())
        return []

    def _values_of(
        self, action: Tensor, moment: Moment, lanes: Lanes, latent: Latent, cache: Cache
    ) -> ActionValues:
        """Take an action (1, A) in the state of `moment`, then follow the policy; also in imagination."""
        branches, gamma = len(lanes.over), self.algo.gamma
        action = action.expand(branches, -1)
        lanes.restore(moment.snapshot, moment.time_step)
        first = lanes.step(action.cpu().numpy())
        # Copies, because a backbone may write into its cache.
        state = AgentState(latent.stoch, action, copy.deepcopy(cache))
        track = self._follow(lanes, first, state, limit=_steps_until_negligible(gamma))
        parts = [track.lane(i) for i in range(branches)]
        returns = [true_returns(p.reward, p.value, p.terminated, gamma)[0] for p in parts]
        true = first.reward + gamma * np.array(returns)
        return ActionValues(true, self._imagine(action, latent, copy.deepcopy(cache)))

    def _imagine(self, action: Tensor, latent: Latent, cache: Cache) -> Array:
        """Return the imagined returns (n,) of taking actions (n, A) in n latents, as the actor sees them."""
        model, algo = self.agent.world_model, self.algo
        with self.noise.installed():
            arrived, cache = model.transition(latent.indexed(), action, cache)
            policy = self.agent.behavior.actor.sample
            imagined = roll_out(model, policy, arrived, cache, algo.horizon)
        value = self._value(imagined.features)
        returns = lambda_return(imagined.reward, value, imagined.discount[:, 1:], algo.lmbda)[:, 0]
        reward, discount = model.predict(arrived)
        values: Array = (reward + discount * returns).double().cpu().numpy()
        return values

    def _follow(
        self, lanes: Lanes, time_step: TimeStep, state: AgentState, limit: int | None = None
    ) -> Track:
        """Follow the policy from a time step to the ends of the episodes, or for `limit` time steps."""
        model, actor = self.agent.world_model, self.agent.behavior.actor
        records: list[tuple[NDArray[Any], ...]] = []
        while True:
            observations, is_first = to_tensors(time_step, self.agent.device)
            with self.noise.installed():
                latent, cache = self.agent.infer(observations, is_first, state, explore=True)
                feature = model.feature(latent)
                action = actor(feature).sample()
            predictions = (
                self._value(feature),
                model.continues.probability(model.continues(feature)),
            )
            value, probability = (x.double().cpu().numpy() for x in predictions)
            ends = (time_step.terminated, lanes.fresh)
            records.append((time_step.reward.astype(np.float64), value, probability, *ends))
            if lanes.over.all() or len(records) == limit:
                return Track(*(np.stack(arrays) for arrays in zip(*records, strict=True)))
            state = AgentState(latent.stoch, action, cache)
            time_step = lanes.step(action.cpu().numpy())

    def _value(self, feature: Any) -> Tensor:
        critic = self.agent.behavior.critic
        return critic.mean(critic(feature))


def _steps_until_negligible(gamma: float) -> int | None:
    return math.ceil(math.log(NEGLIGIBLE) / math.log(gamma)) if 0 < gamma < 1 else None


def _difference(a: Array, b: Array) -> tuple[float, float]:
    error = math.sqrt(a.var(ddof=1) / len(a) + b.var(ddof=1) / len(b))
    return float(a.mean() - b.mean()), error
