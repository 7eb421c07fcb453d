"""Environments that are stepped together, each for one episode or a part of one."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llmdreamer.envs import make_vector
from llmdreamer.types import TimeStep

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig

MAX_DRAWS = 100
"""Draws after which a space is taken to have one action only."""

_ARRAYS = [field.name for field in fields(TimeStep) if field.name != "observations"]


class Lanes:
    """n environments of one kind. A lane whose episode has ended stays at its last time step.

    Each lane is a vector of one environment, so that all lanes can be set to the same snapshot. A failure of
    an environment is not repaired by a restart, because the episode would be another one.

    Attributes:
        over: (n,), True where the episode has ended.
        fresh: (n,), False where the lane had ended before, so its time step has been returned already.

    Raises:
        ConfigError: if the environment cannot be made.
    """

    def __init__(self, env: EnvConfig, lanes: int, seed: int) -> None:
        env = replace(env, max_restarts=0)
        self._vectors = [make_vector(env, 1, seed + lane) for lane in range(lanes)]
        self._steps: list[TimeStep] = []
        self.over = np.zeros(lanes, np.bool_)
        self.fresh = np.ones(lanes, np.bool_)

    def reset(self) -> TimeStep:
        """Start an episode in every lane; return its first time step."""
        return self._begin([vector.reset() for vector in self._vectors])

    def snapshot(self) -> dict[str, Any] | None:
        """Return the complete state of lane 0; None if the environment has no verified snapshot."""
        return self._vectors[0].snapshot()

    def restore(self, snapshot: dict[str, Any], time_step: TimeStep) -> None:
        """Set every lane to a snapshot of one lane, which was taken at `time_step` of one environment."""
        for vector in self._vectors:
            vector.restore(snapshot)
        self._begin([time_step] * len(self._vectors))

    def step(self, action: NDArray[np.float32]) -> TimeStep:
        """Step the lanes that are not over.

        Args:
            action: (n, A); those of lanes that are over are ignored.

        Raises:
            EnvError: if an environment fails.
        """
        self.fresh = ~self.over
        for lane in np.flatnonzero(self.fresh).tolist():
            self._steps[lane] = self._vectors[lane].step(action[lane : lane + 1])
        return self._joined()

    def random_action(
        self, rng: np.random.Generator, unlike: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return a random action (1, A) that differs from `unlike`, if the space has another one."""
        for _ in range(MAX_DRAWS):
            action = self._vectors[0].random_action(rng)
            if not np.array_equal(action, unlike):
                break
        return action

    def close(self) -> None:
        for vector in self._vectors:
            vector.close()

    def _begin(self, steps: list[TimeStep]) -> TimeStep:
        self._steps = steps
        self.fresh = np.ones(len(steps), np.bool_)
        return self._joined()

    def _joined(self) -> TimeStep:
        steps = self._steps
        observations = {
            key: np.concatenate([step.observations[key] for step in steps])
            for key in steps[0].observations
        }
        arrays = {name: np.concatenate([getattr(step, name) for step in steps]) for name in _ARRAYS}
        joined = TimeStep(observations, **arrays)
        self.over = joined.terminated | joined.truncated
        return joined


def repeat_step(time_step: TimeStep, count: int) -> TimeStep:
    """Return a time step of one environment as one of `count` equal ones."""
    arrays = {name: np.repeat(getattr(time_step, name), count, 0) for name in _ARRAYS}
    observations = {
        key: np.repeat(value, count, 0) for key, value in time_step.observations.items()
    }
    return TimeStep(observations, **arrays)
