"""DeepMind Control Suite tasks (arXiv:1801.00690) as Gymnasium environments: `dmc:cartpole-balance`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

if sys.platform.startswith("linux"):  # renders without a screen
    os.environ.setdefault("MUJOCO_GL", "egl")

from dm_control import suite

from llmdreamer.envs import mujoco_state
from llmdreamer.utils.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig

VIDEO_SIZE_PIXELS = 240
"""Width and height in pixels of the images from `render`."""

SNAPSHOT_DOMAINS = (
    *("acrobot", "ball_in_cup", "cartpole", "cheetah", "dog", "finger", "fish", "hopper"),
    *("humanoid", "pendulum", "point_mass", "reacher"),
)
"""Domains whose snapshots were verified to be exact. Not `lqr`: its model is drawn at random on loading."""


class ControlSuite(gym.Env[Any, NDArray[Any]]):
    """One task, with the observations `state` (all numbers in the suite's order) and optionally `image`.

    The suite ends an episode after 1000 control steps with discount 1, which is a truncation. The few
    tasks that end with discount 0 terminate.

    Args:
        task: `domain-task`, for instance `cartpole-balance`.
        image_size: width and height of `image` in pixels; None: no `image`.
        camera: number of the model's camera, for `image` and `render`.
        repeat: control steps of one step; `image` is rendered after the last of them only.
        limit: control steps after which an episode is truncated, if the suite does not end it before.

    Raises:
        ConfigError: if the suite has no such task.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (as Gymnasium declares it)

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
        self.domain, self._task = (name.replace("-", "_") for name in (self.domain, self._task))
        if (self.domain, self._task) not in suite.ALL_TASKS:
            names = ["-".join(pair) for pair in suite.ALL_TASKS]
            raise ConfigError(
                f"env.id=dmc:{task}: the suite has no such task{did_you_mean(task, names)}"
            )
        self._image_size, self._camera = image_size, camera
        self._repeat, self._limit, self.elapsed = repeat, limit, 0
        self.render_mode = render_mode
        self.inner = suite.load(self.domain, self._task)
        action_spec = self.inner.action_spec()
        self.action_space = spaces.Box(
            np.broadcast_to(action_spec.minimum, action_spec.shape).astype(np.float32),
            np.broadcast_to(action_spec.maximum, action_spec.shape).astype(np.float32),
        )
        size = sum(int(np.prod(spec.shape)) for spec in self.inner.observation_spec().values())
        keys: dict[str, spaces.Space[Any]] = {"state": spaces.Box(-np.inf, np.inf, (size,))}
        if image_size is not None:
            keys["image"] = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(keys)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        super().reset(seed=seed)
        self.elapsed = 0
        if seed is not None:  # a task's random generator can only be set on loading
            self.inner = suite.load(self.domain, self._task, task_kwargs={"random": seed})
        return self._observation(self.inner.reset().observation), {}

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
        return self._observation(step.observation), total, terminated, truncated, {}

    def render(self) -> Any:
        return self._image(VIDEO_SIZE_PIXELS)

    def close(self) -> None:
        self.inner.close()

    def _observation(self, arrays: dict[str, Any]) -> dict[str, NDArray[Any]]:
        observation = {"state": np.concatenate([np.ravel(array) for array in arrays.values()])}
        if self._image_size is not None:
            observation["image"] = self._image(self._image_size)
        return observation

    def _image(self, size: int) -> NDArray[Any]:
        image: NDArray[Any] = self.inner.physics.render(size, size, camera_id=self._camera)
        return image


def capture(env: ControlSuite) -> dict[str, Any] | None:
    """Return the complete state of a task; None in a domain without a verified snapshot."""
    if env.domain not in SNAPSHOT_DOMAINS:
        return None
    inner = env.inner
    return {
        "physics": mujoco_state.read_state(inner.physics.model.ptr, inner.physics.data.ptr),
        "random": inner.task.random.get_state(legacy=False),
        "steps": inner._step_count,
        "over": inner._reset_next_step,
        "elapsed": env.elapsed,
    }


def restore(env: ControlSuite, state: dict[str, Any]) -> None:
    """Restore a state that `capture` returned. Raises ConfigError."""
    inner = env.inner
    mujoco_state.write_state(inner.physics.model.ptr, inner.physics.data.ptr, state["physics"])
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
