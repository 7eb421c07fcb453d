"""An environment that seeds the global generators at each call. Importing this module registers it."""

from __future__ import annotations

import random
import sys
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


def seed_all() -> None:
    """Seed every global generator, as code of an environment may do."""
    if "torch" in sys.modules:  # a process of its own does without
        sys.modules["torch"].manual_seed(0)
    np.random.seed(0)
    random.seed(0)


class Reseeding(gym.Env):
    """Observe the step count and the last action; an episode has eleven steps.

    Args:
        seeds: if True, seed the global generators when the environment is made, reset and stepped.
    """

    def __init__(self, seeds: bool = True, render_mode: str | None = None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = spaces.Discrete(3)
        self.render_mode, self.seeds, self.count = render_mode, seeds, 0
        self._seed_all()

    def _seed_all(self) -> None:
        if self.seeds:
            seed_all()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self._seed_all()
        self.count = 0
        return np.array([0.0, -1.0], np.float32), {}

    def step(self, action: int):
        self._seed_all()
        self.count += 1
        observation = np.array([self.count, action], np.float32)
        return observation, float(action), self.count == 11, False, {}


gym.register("Reseeding-v0", Reseeding)
