"""MiniGrid and BabyAI (arXiv:2306.13831): what the agent sees before it, and its mission in words."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import minigrid  # registers its environments
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmdreamer.envs import fetch_two
from llmdreamer.envs.plain import Packer, Unpacker
from llmdreamer.envs.wrappers import ActionRepeat
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig

VIEWS = ("rgb", "symbolic")
CELL = 8
"""Pixels of a cell's side in the `rgb` view: the 7 x 7 cells seen are 56 x 56 pixels."""
CONTRAST = np.array([25, 50, 100], np.uint8)
"""The symbolic view's kinds (0 to 10), colours (0 to 5) and states (0 to 2), spread over a byte."""


MODULES = (
    *(f"minigrid.core.{name}" for name in ("grid", "world_object", "roomgrid")),
    *(f"minigrid.envs.{name}" for name in ("lockedroom", "multiroom", "babyai.core.verifier")),
)
GIVEN = ("spec", "metadata", "_np_random", "_np_random_seed")


class PartialView(gym.ObservationWrapper[Any, Any, Any]):
    """`image` (the 7 x 7 cells before the agent), `mission` and `direction` (one of 4).

    Args:
        view: `rgb` draws the cells; `symbolic` has a pixel for each, of kind, colour and state.
    """

    def __init__(self, env: gym.Env[Any, Any], view: str) -> None:
        super().__init__(env)
        self._view = view
        inner = env.observation_space
        assert isinstance(inner, spaces.Dict)
        cells = inner["image"].shape
        assert cells is not None
        scale = CELL if view == "rgb" else 1
        shape = (cells[0] * scale, cells[1] * scale, 3)
        self.observation_space = spaces.Dict(
            {**inner.spaces, "image": spaces.Box(0, 255, shape, np.uint8)}
        )

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {**observation, "image": self._image(observation["image"])}

    def _image(self, cells: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._view == "symbolic":
            return cells * CONTRAST
        frame: NDArray[np.uint8] = self.get_wrapper_attr("get_frame")(
            tile_size=CELL, agent_pov=True
        )
        return frame


def capture(env: Any) -> dict[str, Any] | None:
    """All that moves in a level, beside its generator: its attributes, and the things on its grid; None
    if one of them is of a kind that is not known."""
    try:
        return {"level": Packer(_things(), env).pack(_moving(env))}
    except TypeError:
        return None


def restore(env: Any, state: dict[str, Any]) -> None:
    """Put a level where `capture` saw it.

    Raises:
        ConfigError: if there is a thing of an unknown kind in it.
    """
    try:
        vars(env).update(Unpacker(_things(), env).unpack(state["level"]))
    except KeyError as error:
        raise ConfigError(f"snapshot of another MiniGrid: it has no {error}") from error


def _moving(env: Any) -> dict[str, Any]:
    fixed = (type, spaces.Space)
    named = {name: value for name, value in vars(env).items() if not isinstance(value, fixed)}
    # The generator is kept by `snapshot`; the specification says how the level was made.
    return {name: value for name, value in named.items() if name not in GIVEN}


def _things() -> dict[str, type]:
    """By name: what stands on a grid, rooms, and what a mission of BabyAI is made of."""
    found = {}
    for module in map(import_module, MODULES):
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__:
                found[name] = value
    return {name: kind for name, kind in found.items() if not issubclass(kind, gym.Env)}


def make(cfg: EnvConfig, render: bool) -> gym.Env[Any, Any]:
    """Return a `MiniGrid-...` or `BabyAI-...`; `env.kwargs.view` is `rgb` or `symbolic`."""
    kwargs = dict(cfg.kwargs)
    view = kwargs.pop("view", "rgb")
    if view not in VIEWS:
        raise ConfigError(f"env.kwargs.view={view}: choose from {', '.join(VIEWS)}")
    if cfg.max_episode_steps is not None:
        kwargs["max_steps"] = cfg.max_episode_steps  # the suite truncates by itself
    if render:
        kwargs["render_mode"] = "rgb_array"
    gym.register_envs(minigrid)
    fetch_two.register()
    env: gym.Env[Any, Any] = PartialView(gym.make(cfg.id, disable_env_checker=True, **kwargs), view)
    return ActionRepeat(env, cfg.action_repeat) if cfg.action_repeat > 1 else env
