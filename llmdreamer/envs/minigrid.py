"""MiniGrid and BabyAI (arXiv:2306.13831): the cells in front of the agent, and its mission as text."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import minigrid  # registers its environments
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from llmdreamer.envs import fetch_two
from llmdreamer.envs.factory import repeat_actions
from llmdreamer.envs.plain import Packer, Unpacker
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import EnvConfig

VIEWS = ("rgb", "symbolic")
CELL_PIXELS = 8
"""Width and height of a cell in the `rgb` view: the 7 x 7 visible cells are 56 x 56 pixels."""
SYMBOL_SCALE = np.array([25, 50, 100], np.uint8)
"""Factors that spread the object types (0 to 10), colors (0 to 5) and states (0 to 2) of the symbolic view
over a byte."""

PACKABLE_MODULES = (
    *(f"minigrid.core.{name}" for name in ("grid", "world_object", "roomgrid")),
    *(f"minigrid.envs.{name}" for name in ("lockedroom", "multiroom", "babyai.core.verifier")),
)
"""Modules of the classes that a level's state may contain."""

EXCLUDED_ATTRIBUTES = ("spec", "metadata", "_np_random", "_np_random_seed")
"""Attributes that are constant, or that `llmdreamer.envs.snapshot` saves itself."""


class PartialView(gym.ObservationWrapper[Any, Any, Any]):
    """Observe `image` (the 7 x 7 cells in front of the agent), `mission` and `direction` (one of 4).

    Args:
        view: `rgb` draws the cells; `symbolic` has one pixel for each: object type, color and state.
    """

    def __init__(self, env: gym.Env[Any, Any], view: str) -> None:
        super().__init__(env)
        self._view = view
        space = env.observation_space
        assert isinstance(space, spaces.Dict)
        cells = space["image"].shape
        assert cells is not None
        scale = CELL_PIXELS if view == "rgb" else 1
        shape = (cells[0] * scale, cells[1] * scale, 3)
        self.observation_space = spaces.Dict(
            {**space.spaces, "image": spaces.Box(0, 255, shape, np.uint8)}
        )

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        return {**observation, "image": self._image(observation["image"])}

    def _image(self, cells: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._view == "symbolic":
            return cells * SYMBOL_SCALE
        frame: NDArray[np.uint8] = self.get_wrapper_attr("get_frame")(
            tile_size=CELL_PIXELS, agent_pov=True
        )
        return frame


def capture(env: Any) -> dict[str, Any] | None:
    """Return a level's attributes and the objects on its grid, without its random generator.

    Returns:
        None if an object has an unknown class.
    """
    try:
        return {"level": Packer(_packable_classes(), env).pack(_level_state(env))}
    except TypeError:
        return None


def restore(env: Any, state: dict[str, Any]) -> None:
    """Restore a state that `capture` returned.

    Raises:
        ConfigError: if it contains an object of an unknown class.
    """
    try:
        vars(env).update(Unpacker(_packable_classes(), env).unpack(state["level"]))
    except KeyError as error:
        raise ConfigError(
            f"the snapshot is from another version of minigrid, which has {error}"
        ) from error


def _level_state(env: Any) -> dict[str, Any]:
    fixed = (type, spaces.Space)
    state = {name: value for name, value in vars(env).items() if not isinstance(value, fixed)}
    return {name: value for name, value in state.items() if name not in EXCLUDED_ATTRIBUTES}


def _packable_classes() -> dict[str, type]:
    """Return the classes of grid objects, rooms and BabyAI instructions by name."""
    classes = {}
    for module in map(import_module, PACKABLE_MODULES):
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__:
                classes[name] = value
    return {name: cls for name, cls in classes.items() if not issubclass(cls, gym.Env)}


def make(cfg: EnvConfig, render: bool) -> gym.Env[Any, Any]:
    """Return a `MiniGrid-...` or `BabyAI-...` level; `env.kwargs.view` is `rgb` or `symbolic`."""
    kwargs = dict(cfg.kwargs)
    view = kwargs.pop("view", "rgb")
    if view not in VIEWS:
        raise ConfigError(f"env.kwargs.view={view}: choose from {', '.join(VIEWS)}")
    if cfg.max_episode_steps is not None:
        kwargs["max_steps"] = cfg.max_episode_steps  # the level truncates by itself
    if render:
        kwargs["render_mode"] = "rgb_array"
    gym.register_envs(minigrid)
    fetch_two.register()
    env: gym.Env[Any, Any] = PartialView(gym.make(cfg.id, disable_env_checker=True, **kwargs), view)
    return repeat_actions(env, cfg)
