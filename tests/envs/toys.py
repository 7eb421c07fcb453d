"""Tiny environments whose time steps are easy to compute by hand; importing this module registers them.

An id `toys:ToyName-v0` imports it.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from llmdreamer.config import EnvConfig
from llmdreamer.envs import VectorEnv, make_vector


class Count(gym.Env):
    """Observe the step count and the last action; the reward is the count; terminates at `end`."""

    def __init__(
        self, end: int = 5, start: int = 0, fault: str = "", render_mode: str | None = None
    ):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = spaces.Discrete(3, start=start)
        self.render_mode = render_mode
        self.end, self.fault, self.count, self.action = end, fault, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.count = 0
        return np.array([0.0, -1.0]), {}

    def step(self, action: int):
        self.count += 1
        self.action = action
        if self.fault == "raise" and self.count == 2:
            raise OSError("the simulator is gone")
        value = np.nan if self.fault == "nan" and self.count == 2 else float(self.count)
        reward = np.inf if self.fault == "reward" and self.count == 2 else float(self.count)
        return np.array([value, float(action)]), reward, self.count >= self.end, False, {}


class Show(gym.Env):
    """Always observe the same value, of any space."""

    def __init__(self, space: spaces.Space, value: Any = None, actions: spaces.Space | None = None):
        self.observation_space = space
        self.action_space = actions if actions is not None else spaces.Discrete(2)
        self.value = value

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        return self.value, {}

    def step(self, action: int):
        return self.value, 0.0, False, False, {}


class Blink(gym.Env):
    """Light only pixel k in frame k; the reward is 1."""

    observation_space = spaces.Box(0, 255, (1, 5, 1), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.count = 0
        return self.frame(), {}

    def step(self, action: int):
        self.count += 1
        return self.frame(), 1.0, False, False, {}

    def frame(self) -> np.ndarray:
        frame = np.zeros((1, 5, 1), np.uint8)
        frame[0, self.count] = 255
        return frame


class Needy(gym.Env):
    """Raise on construction, as if a dependency were not installed."""

    def __init__(self) -> None:
        raise gym.error.DependencyNotInstalled(
            'Toy is not installed,\nrun `pip install "toy[sim]"`'
        )


for name, entry in {"Count": Count, "Show": Show, "Needy": Needy}.items():
    if f"Toy{name}-v0" not in gym.registry:
        gym.register(f"Toy{name}-v0", entry)


def make(
    env_id: str, n: int = 1, repeat: int = 1, limit: int | None = None, **kw: Any
) -> VectorEnv:
    """Return n environments made from a configuration, with seed 0."""
    cfg = EnvConfig(id=env_id, num_envs=n, action_repeat=repeat, max_episode_steps=limit, kwargs=kw)
    return make_vector(cfg, n, seed=0)


def action(index: int, n: int = 1, size: int = 3) -> np.ndarray:
    """Return (n, size) one-hot vectors of the same action."""
    return np.tile(np.eye(size, dtype=np.float32)[index], (n, 1))
