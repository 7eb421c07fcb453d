"""A package of somebody else's, with an environment of its own: `env.id=lightroom:LightRoom-v0`."""

import gymnasium as gym

gym.register("LightRoom-v0", "lightroom.room:LightRoom", max_episode_steps=20)
