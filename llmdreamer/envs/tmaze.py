"""A corridor whose last choice depends on its first observation: a test of memory alone.

After Bakker, "Reinforcement Learning with Long Short-Term Memory" (NeurIPS 2001). There the walker
must also find its way to the fork. Here the corridor leads to it: the question is what a world model
remembers, not how it explores.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

LEFT, RIGHT = range(2)


class TMaze(gym.Env[NDArray[np.float32], Any]):
    """Show a sign, a walk of `length` steps, and a fork: the reward is +1 for the signed turn, else -1.

    The observation is (sign, at the fork). The sign is -1 for left and +1 for right at the first time
    step, and 0 at all others. The second number is 1 at the fork. The length of the walk is not
    observed. Before the fork both actions are one step ahead; there the turn ends the episode. The
    return is 1 with memory, and 0 on average without.

    Args:
        length: steps from the start to the fork, >= 1. The sign is `length` steps old at the fork:
            compare with `algo.world_model.hf_model.seq_len`.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (as Gymnasium declares it)

    def __init__(self, length: int = 10, render_mode: str | None = None) -> None:
        if length < 1:
            raise ValueError(f"length={length}: must be >= 1")
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode
        self._length, self._sign, self._position = length, 1, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._sign = 1 if self.np_random.random() < 0.5 else -1
        self._position = 0
        return self._observation(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self._position == self._length:
            turn = -1 if action == LEFT else 1
            return self._observation(), float(turn * self._sign), True, False, {}
        self._position += 1
        return self._observation(), 0.0, False, False, {}

    def _observation(self) -> NDArray[np.float32]:
        sign = self._sign if self._position == 0 else 0
        return np.array([sign, self._position == self._length], np.float32)

    def render(self) -> Any:
        """Return the corridor from above: the walker red, the correct end green."""
        image = np.zeros((3, self._length + 1, 3), np.uint8)
        image[1, :] = image[[0, 2], -1] = 160
        image[1 + self._sign, -1] = (0, 200, 0)
        image[1, self._position] = (200, 0, 0)
        return image.repeat(16, 0).repeat(16, 1)


gym.register("TMaze-v0", "llmdreamer.envs.tmaze:TMaze")
