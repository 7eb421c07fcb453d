"""Environments stepped side by side, each reset only when it is told to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from llmdreamer.envs import snapshot as snapshots
from llmdreamer.envs.spaces import action_kind, observation_keys
from llmdreamer.errors import ConfigError
from llmdreamer.types import EnvSpec, TimeStep


class EnvError(RuntimeError):
    """An environment raised, or showed what it may not: which one, and at which policy step."""

    def __init__(self, index: int, step: int, cause: str) -> None:
        super().__init__(f"environment {index}, policy step {step}: {cause}")
        self.index = index
        self.step = step


class VectorEnv:
    """n environments of one kind, in this process.

    There is no autoreset: after an episode's last row the caller resets that environment, so every
    row an episode shows is seen once and in order.

    Args:
        envs: built alike, at least one.
        seed: of the whole vector. The first reset of environment i takes the seed of a child of its
            own, whatever n is; later resets go on with the environment's generator.
        action_repeat: told on `spec`; the environments already repeat.

    Raises:
        ConfigError: if a space is of an unsupported kind.
    """

    def __init__(self, envs: Sequence[gym.Env[Any, Any]], seed: int, action_repeat: int = 1):
        assert envs, "at least one environment"
        self._envs = list(envs)
        self._keys = observation_keys(envs[0].observation_space)
        self._actions = action_kind(envs[0].action_space)
        self.num_envs = len(envs)
        self.spec = EnvSpec(
            observations={name: part.shape for name, part in self._keys.items()},
            action_size=self._actions.size,
            discrete=self._actions.discrete,
            action_repeat=action_repeat,
        )
        children = np.random.SeedSequence(seed).spawn(self.num_envs)
        # 31 bits: some simulators keep the seed in a signed int.
        seeds = [int(child.generate_state(1)[0]) >> 1 for child in children]
        self._pending_seeds: list[int | None] = list(seeds)  # None once used
        self._steps = [0] * self.num_envs
        self._started = np.zeros(self.num_envs, np.bool_)
        self._rows = self._blank_rows()

    def reset(self, mask: NDArray[np.bool_] | None = None) -> TimeStep:
        """Start an episode where `mask` (n,) is true, everywhere if it is None.

        Returns:
            All n rows; those not in the mask stay as they were, `is_first` included.

        Raises:
            EnvError: if an environment raises or shows a non-finite or misshapen observation.
        """
        mask = np.ones(self.num_envs, np.bool_) if mask is None else mask
        assert mask.shape == (self.num_envs,) and mask.dtype == np.bool_, mask
        assert (self._started | mask).all(), "the first reset is of all environments"
        for i in np.flatnonzero(mask).tolist():
            seed = self._pending_seeds[i]
            observation, _ = self._call(i, partial(self._envs[i].reset, seed=seed))
            self._pending_seeds[i] = None
            self._started[i] = True
            self._set_row(i, observation, 0.0, False, False)
            self._rows.is_first[i] = True
        return self._copy_rows()

    def step(self, action: NDArray[np.float32]) -> TimeStep:
        """Act once in every environment.

        Args:
            action: (n, A), one-hot where discrete.

        Raises:
            AssertionError: if a row is an episode's last: no action follows it.
            EnvError: if an environment raises, or its observation or reward is not finite. Those
                before it have moved and those after it have not: reset all to go on.
        """
        assert action.shape == (self.num_envs, self.spec.action_size), action.shape
        assert self._started.all(), "reset before the first step"
        over = np.flatnonzero(self._rows.terminated | self._rows.truncated)
        assert over.size == 0, f"the episodes of environments {over} are over: reset them first"
        for i, env in enumerate(self._envs):
            self._steps[i] += 1
            taken = self._actions.decode(action[i])
            result = self._call(i, partial(env.step, taken))
            observation, reward, terminated, truncated, _ = result
            self._set_row(i, observation, float(reward), bool(terminated), bool(truncated))
            self._rows.is_first[i] = False
        return self._copy_rows()

    def random_action(self, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return (n, A) actions, uniform over the action space."""
        return self._actions.sample(rng, self.num_envs)

    def render(self) -> NDArray[Any] | None:
        """Return an (H, W, 3) uint8 picture of environment 0; None unless asked for when made."""
        if self._envs[0].render_mode is None:
            return None
        return np.asarray(self._call(0, self._envs[0].render))

    def close(self) -> None:
        """Free what the environments hold."""
        for env in self._envs:
            env.close()

    def snapshot(self) -> dict[str, Any] | None:
        """Return all that moves, as plain types; None if an environment has no verified snapshot.

        A vector restored from it gives the very rows that this one would have given.
        """
        assert self._started.all(), "reset before the first snapshot"
        environments = [snapshots.capture(env) for env in self._envs]
        if any(state is None for state in environments):
            return None
        rows = {key: snapshots.to_plain(array) for key, array in self._arrays().items()}
        return {"environments": environments, "steps": list(self._steps), "rows": rows}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot of a vector made with the same arguments.

        Raises:
            ConfigError: if it is of another number or kind of environments.
        """
        states = snapshot["environments"]
        if len(states) != self.num_envs:
            raise ConfigError(
                f"the checkpoint has {len(states)} environments, env.num_envs={self.num_envs}; "
                "they must agree to resume"
            )
        for env, state in zip(self._envs, states, strict=True):
            snapshots.restore(env, state)
        for key, array in self._arrays().items():
            array[...] = snapshots.from_plain(snapshot["rows"][key])
        self._steps = list(snapshot["steps"])
        self._pending_seeds = [None] * self.num_envs
        self._started[:] = True

    def _call(self, index: int, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # an environment is a stranger's code and may raise anything
            cause = f"{type(error).__name__}: {error}"
            raise EnvError(index, self._steps[index], cause) from error

    def _set_row(
        self, index: int, observation: Any, reward: float, terminated: bool, truncated: bool
    ) -> None:
        plain = observation if isinstance(observation, dict) else {"state": observation}
        for key, part in self._keys.items():
            try:
                self._rows.observations[key][index] = part.encode(plain[key])
            except (KeyError, TypeError, ValueError) as error:
                cause = f"key '{key}': {error}"
                raise EnvError(index, self._steps[index], cause) from error
        if not np.isfinite(reward):
            raise EnvError(index, self._steps[index], f"reward is {reward}")
        self._rows.reward[index] = reward
        self._rows.terminated[index] = terminated
        self._rows.truncated[index] = truncated

    def _blank_rows(self) -> TimeStep:
        n = self.num_envs
        observations = {
            name: np.zeros((n, *part.shape), part.dtype) for name, part in self._keys.items()
        }
        flags = (np.zeros(n, np.bool_) for _ in range(3))
        return TimeStep(observations, np.zeros(n, np.float32), *flags)

    def _arrays(self) -> dict[str, NDArray[Any]]:
        rows = self._rows
        names = ("reward", "is_first", "terminated", "truncated")
        observations = {f"observations/{key}": array for key, array in rows.observations.items()}
        return observations | {name: getattr(rows, name) for name in names}

    def _copy_rows(self) -> TimeStep:
        rows = self._rows
        return TimeStep(
            observations={key: array.copy() for key, array in rows.observations.items()},
            reward=rows.reward.copy(),
            is_first=rows.is_first.copy(),
            terminated=rows.terminated.copy(),
            truncated=rows.truncated.copy(),
        )
