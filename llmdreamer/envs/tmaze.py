"""A corridor whose last choice depends on its first observation: a test of memory alone.

After Bakker, "Reinforcement Learning with Long Short-Term Memory" (NeurIPS 2001). There the walker must
find its way to the fork, too; here the corridor leads to it, as what a world model remembers is the question,
and exploration another one.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

LEFT, RIGHT = range(2)


class TMaze(gym.Env[NDArray[np.float32], Any]):
    """See a sign, walk `length` steps, turn as the sign said: +1 if so, -1 if not.

    The state is (sign, at the fork): sign is -1 for left and +1 for right in the first row and 0 in
    all others, the fork shows as 1. Nothing tells how far the walk is. Before the fork both actions are a
    step ahead; there the turn ends the episode. With memory the return is 1, without it 0 on average.

    Args:
        length: steps from the start to the fork, >= 1. What must be remembered is `length` steps
            old: compare it with `algo.world_model.hf_model.seq_len`.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own spelling)

    def __init__(self, length: int = 10, render_mode: str | None = None) -> None:
        if length < 1:
            raise ValueError(f"length={length}: must be >= 1")
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode
        self._length, self._sign, self._place = length, 1, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self._sign = 1 if self.np_random.random() < 0.5 else -1
        self._place = 0
        return self._state(), {}

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self._place == self._length:
            turned = -1 if action == LEFT else 1
            return self._state(), float(turned * self._sign), True, False, {}
        self._place += 1
        return self._state(), 0.0, False, False, {}

    def _state(self) -> NDArray[np.float32]:
        sign = self._sign if self._place == 0 else 0
        return np.array([sign, self._place == self._length], np.float32)

    def render(self) -> Any:
        """Return the corridor from above: the walker red, the right end green."""
        picture = np.zeros((3, self._length + 1, 3), np.uint8)
        picture[1, :] = picture[[0, 2], -1] = 160
        picture[1 + self._sign, -1] = (0, 200, 0)
        picture[1, self._place] = (200, 0, 0)
        return picture.repeat(16, 0).repeat(16, 1)


gym.register("TMaze-v0", "llmdreamer.envs.tmaze:TMaze")
