"""Atari 2600 through the Arcade Learning Environment, by the protocol of arXiv:1709.06009 (2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ale_py
import gymnasium as gym
import numpy as np

from llmdreamer.envs.factory import make_registered
from llmdreamer.envs.wrappers import ActionRepeat

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig


class MaxPooledActionRepeat(ActionRepeat):
    """Repeat actions and return the pixel-wise maximum of the last two frames.

    The console draws some objects on every other frame only.
    """

    def _combine(self, last: list[Any]) -> Any:
        return np.max(last, 0)


def capture(env: Any) -> dict[str, Any]:
    """Return the emulator's own state, sticky actions included, without Gymnasium's random generator."""
    return {"ale": env.ale.cloneState(include_rng=True).serialize()}


def restore(env: Any, state: dict[str, Any]) -> None:
    """Restore a state that `capture` returned."""
    env.ale.restoreState(ale_py.ALEState(state["ale"]))


def make(cfg: EnvConfig, render: bool) -> gym.Env[Any, Any]:
    """Return a game such as `ALE/Pong-v5`, stepped by single frames under our own action repeat.

    `env.kwargs` go to ale_py's environment, for instance `repeat_action_probability` (sticky
    actions), `full_action_space`, `obs_type` (rgb | grayscale), `mode`, `difficulty`.
    """
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # no banner for each environment
    return MaxPooledActionRepeat(make_registered(cfg, render, frameskip=1), cfg.action_repeat)
