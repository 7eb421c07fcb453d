"""The smallest level in which the mission matters: it asks for one of a red and a blue ball."""

from __future__ import annotations

import gymnasium as gym
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball
from minigrid.envs.fetch import FetchEnv

ID = "MiniGrid-FetchTwo-5x5-v0"


class FetchTwo(FetchEnv):
    """MiniGrid's Fetch with two balls of different colors: without the mission, the choice is a guess.

    In Fetch itself, six colors of keys and balls must be matched with as many words, seen one at a time.
    """

    def _gen_grid(self, width: int, height: int) -> None:
        self.grid = Grid(width, height)
        self.grid.wall_rect(0, 0, width, height)
        balls = [Ball("red"), Ball("blue")]
        for ball in balls:
            self.place_obj(ball)
        self.place_agent()
        target = self._rand_elem(balls)
        self.targetType, self.targetColor = target.type, target.color
        self.mission = f"get a {target.color} {target.type}"


def register() -> None:
    """Register the level with Gymnasium, once."""
    if ID not in gym.registry:
        gym.register(ID, FetchTwo, kwargs={"size": 5, "numObjs": 2})
