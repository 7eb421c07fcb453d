"""The smallest level in which a mission matters: a red and a blue ball, one of which is asked for."""

from __future__ import annotations

import gymnasium as gym
from minigrid.core.grid import Grid
from minigrid.core.world_object import Ball
from minigrid.envs.fetch import FetchEnv

ID = "MiniGrid-FetchTwo-5x5-v0"


class FetchTwo(FetchEnv):
    """MiniGrid's Fetch with two things that are always different: without its mission, a guess.

    There six colours of keys and balls are to be matched with as many words, seen one at a time.
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
    """Make the level known to Gymnasium, once."""
    if ID not in gym.registry:
        gym.register(ID, FetchTwo, kwargs={"size": 5, "numObjs": 2})
