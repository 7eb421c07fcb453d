"""A room that cools down, with a heater: `env.id=llmdreamer_example.thermostat:Thermostat-v0`."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Thermostat(gym.Env):
    """Observes the temperature and the target; the reward is minus a tenth of their distance in kelvin."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)  # off, on

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.temperature, self.target = self.np_random.uniform(15.0, 25.0, 2)
        return self._observation(), {}

    def step(self, action: Any):
        self.temperature += 1.0 * int(action) - 0.05 * (self.temperature - 10.0)
        reward = -0.1 * abs(self.temperature - self.target)
        return self._observation(), float(reward), False, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.temperature, self.target], np.float32)


gym.register("Thermostat-v0", Thermostat, max_episode_steps=50)
