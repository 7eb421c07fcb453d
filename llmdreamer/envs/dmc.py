"""The tasks of the DeepMind Control Suite (arXiv:1801.00690), `dmc:cartpole-balance`, as gymnasium's."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

if sys.platform.startswith("linux"):  # a machine without a screen draws, too
    os.environ.setdefault("MUJOCO_GL", "egl")

from dm_control import suite

from llmdreamer.envs import physics
from llmdreamer.utils.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig

VIDEO_SIZE = 240
"""Pixels of a side of the pictures that `render` gives."""


KNOWN = (
    *("acrobot", "ball_in_cup", "cartpole", "cheetah", "dog", "finger", "fish", "hopper"),
    *("humanoid", "pendulum", "point_mass", "reacher"),
)
"""Domains with a snapshot that was seen to be exact. Not `lqr`: its model is drawn when it is loaded."""


class ControlSuite(gym.Env[Any, NDArray[Any]]):
    """One task: `state`, all its numbers in the suite's order, and `image` if asked for.

    An episode of the suite ends after 1000 control steps, which is a truncation: its discount is 1
    there. The few tasks that fail for good (discount 0) terminate.

    Args:
        task: `domain-task`, as `cartpole-balance`.
        image_size: pixels of a side of `image`; None: there is none.
        camera: number of the model's camera that both pictures are taken with.
        repeat: control steps of one step; a picture is drawn after the last of them only.
        limit: control steps after which an episode is truncated, if the suite does not before.

    Raises:
        ConfigError: if the suite has no such task.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own spelling)

    def __init__(
        self,
        task: str,
        image_size: int | None = None,
        camera: int = 0,
        repeat: int = 1,
        limit: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.domain, _, self._task = task.partition("-")
        self.domain, self._task = (word.replace("-", "_") for word in (self.domain, self._task))
        if (self.domain, self._task) not in suite.ALL_TASKS:
            names = ["-".join(pair) for pair in suite.ALL_TASKS]
            raise ConfigError(
                f"env.id=dmc:{task}: the suite has no such task{did_you_mean(task, names)}"
            )
        self._image_size, self._camera = image_size, camera
        self._repeat, self._limit, self.elapsed = repeat, limit, 0
        self.render_mode = render_mode
        self.inner = suite.load(self.domain, self._task)
        action = self.inner.action_spec()
        self.action_space = spaces.Box(
            np.broadcast_to(action.minimum, action.shape).astype(np.float32),
            np.broadcast_to(action.maximum, action.shape).astype(np.float32),
        )
        size = sum(int(np.prod(part.shape)) for part in self.inner.observation_spec().values())
        shown: dict[str, spaces.Space[Any]] = {"state": spaces.Box(-np.inf, np.inf, (size,))}
        if image_size is not None:
            shown["image"] = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(shown)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        super().reset(seed=seed)
        self.elapsed = 0
        if seed is not None:  # a task draws from a generator that it is given when it is loaded
            self.inner = suite.load(self.domain, self._task, task_kwargs={"random": seed})
        return self._shown(self.inner.reset().observation), {}

    def step(
        self, action: NDArray[Any]
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        total, terminated, truncated = 0.0, False, False
        for _ in range(self._repeat):
            step = self.inner.step(action)
            self.elapsed += 1
            total += float(step.reward)
            terminated = bool(step.last() and step.discount == 0)
            over = step.last() or (self._limit is not None and self.elapsed >= self._limit)
            truncated = bool(over and not terminated)
            if over:
                break
        return self._shown(step.observation), total, terminated, truncated, {}

    def render(self) -> Any:
        return self._picture(VIDEO_SIZE)

    def close(self) -> None:
        self.inner.close()

    def _shown(self, parts: dict[str, Any]) -> dict[str, NDArray[Any]]:
        shown = {"state": np.concatenate([np.ravel(part) for part in parts.values()])}
        if self._image_size is not None:
            shown["image"] = self._picture(self._image_size)
        return shown

    def _picture(self, size: int) -> NDArray[Any]:
        picture: NDArray[Any] = self.inner.physics.render(size, size, camera_id=self._camera)
        return picture


def capture(env: ControlSuite) -> dict[str, Any] | None:
    """All that moves in a task; None in a domain where that is not known."""
    if env.domain not in KNOWN:
        return None
    inner = env.inner
    return {
        "physics": physics.read(inner.physics.model.ptr, inner.physics.data.ptr),
        "random": inner.task.random.get_state(legacy=False),
        "steps": inner._step_count,
        "over": inner._reset_next_step,
        "elapsed": env.elapsed,
    }


def restore(env: ControlSuite, state: dict[str, Any]) -> None:
    """Put a task where `capture` saw it. Raises ConfigError."""
    inner = env.inner
    physics.write(inner.physics.model.ptr, inner.physics.data.ptr, state["physics"])
    inner.task.random.set_state(state["random"])
    inner._step_count, inner._reset_next_step = state["steps"], state["over"]
    env.elapsed = state["elapsed"]


def make(cfg: EnvConfig, render: bool) -> gym.Env[Any, Any]:
    """Return the task of `dmc:domain-task`; `env.kwargs`: `pixels` (bool) and `camera` (int)."""
    kwargs = dict(cfg.kwargs)
    size = cfg.image_size if kwargs.pop("pixels", False) else None
    return ControlSuite(
        cfg.id.removeprefix("dmc:"),
        size,
        repeat=cfg.action_repeat,
        limit=cfg.max_episode_steps,
        render_mode="rgb_array" if render else None,
        **kwargs,
    )
