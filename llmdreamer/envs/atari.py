"""Atari 2600 through the Arcade Learning Environment, by the protocol of arXiv:1709.06009 (2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, SupportsFloat

import ale_py
import gymnasium as gym
import numpy as np

from llmdreamer.envs.factory import make_registered

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig


class PooledRepeat(gym.Wrapper[Any, Any, Any, Any]):
    """Repeat each action, sum the rewards, and show the brighter of the last two frames' pixels.

    The console draws some objects on every other frame only.

    Args:
        repeat: frames of one policy step, >= 1.
    """

    def __init__(self, env: gym.Env[Any, Any], repeat: int) -> None:
        assert repeat >= 1, repeat
        super().__init__(env)
        self._repeat = repeat

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        total = 0.0
        frames: list[Any] = []
        for _ in range(self._repeat):
            frame, reward, terminated, truncated, info = self.env.step(action)
            frames = [*frames[-1:], frame]
            total += float(reward)
            if terminated or truncated:
                break
        return np.max(frames, 0), total, terminated, truncated, info


def make(cfg: EnvConfig, render: bool) -> gym.Env[Any, Any]:
    """Return a game, `ALE/Pong-v5`, stepped by single frames below our own repeat.

    `env.kwargs` go to ale_py's environment, as `repeat_action_probability` (sticky actions),
    `full_action_space`, `obs_type` (rgb | grayscale), `mode`, `difficulty`.
    """
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner for each environment
    return PooledRepeat(make_registered(cfg, render, frameskip=1), cfg.action_repeat)
