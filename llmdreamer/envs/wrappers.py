"""Wrappers that change what one policy step of an environment is."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym

from llmdreamer.envs.returned import read_step


class ActionRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """Repeat each action, sum the rewards, and stop at the end of the episode.

    It wraps `TimeLimit`, so a limit counts environment steps, not policy steps.

    Args:
        repeat: environment steps of one policy step, >= 1.
    """

    def __init__(self, env: gym.Env[Any, Any], repeat: int) -> None:
        assert repeat >= 1, repeat
        super().__init__(env)
        self._repeat = repeat

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Take a policy step; `info` is that of its last environment step."""
        total = 0.0
        last: list[Any] = []
        for _ in range(self._repeat):
            result = self.env.step(action)
            step = read_step(result)
            last = [*last[-1:], step.observation]
            total += step.reward
            if step.terminated or step.truncated:
                break
        return self._combine(last), total, step.terminated, step.truncated, result[4]

    def _combine(self, last: list[Any]) -> Any:
        """Return the observation of a policy step, from its last one or two observations.

        The base class returns the last; Atari's takes the pixel-wise maximum.
        """
        return last[-1]
