"""CartPole in other units: positions near 1e-3, velocities and angles near 1e3, and rewards of 100."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

UNITS = np.array([1e-3, 1e3, 1e3, 1e-3], np.float32)
"""Kilometers, millimeters a second, milliradians, kiloradians a second."""
REWARD = 100.0


class UnitsCartPole(gym.Env):
    """CartPole's physics, starts and ends; only the numbers that the agent sees are in `UNITS`."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own spelling)

    def __init__(self, render_mode: str | None = None) -> None:
        self.inner = CartPoleEnv(render_mode=render_mode)
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = self.inner.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        observation, info = self.inner.reset(seed=seed)
        return observation * UNITS, info

    def step(self, action: int):
        observation, reward, terminated, truncated, info = self.inner.step(action)
        return observation * UNITS, REWARD * float(reward), terminated, truncated, info

    def render(self):
        return self.inner.render()
