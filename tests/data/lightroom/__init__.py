"""A package of somebody else's, with two environments: `env.id=lightroom:LightRoom-v0` is one."""

import gymnasium as gym

gym.register("LightRoom-v0", "lightroom.room:LightRoom", max_episode_steps=20)
gym.register("UnitsCartPole-v0", "lightroom.units:UnitsCartPole", max_episode_steps=500)
