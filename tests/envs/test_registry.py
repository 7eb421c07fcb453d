"""Test that the environments of Gymnasium's own registry start."""

import importlib.util

import gymnasium as gym
import numpy as np
import pytest

from llmdreamer.config import EnvConfig
from llmdreamer.envs import make_vector

EXTRA_MODULES = {
    "gymnasium.envs.box2d": ("Box2D",),
    "gymnasium.envs.mujoco": ("mujoco", "imageio"),
    "gymnasium.envs.phys2d": ("jax",),
    "gymnasium.envs.tabular": ("jax",),
}
"""Modules that Gymnasium's environments need, by the folder of their code."""

OWN = {
    env_id: spec
    for env_id, spec in gym.registry.items()
    if str(spec.entry_point).startswith("gymnasium.envs.")
}
"""Gymnasium's own environments. The entry point of an id that was removed is a function that raises."""


def missing_modules(entry_point: str) -> list[str]:
    needed = (names for folder, names in EXTRA_MODULES.items() if entry_point.startswith(folder))
    return [name for names in needed for name in names if importlib.util.find_spec(name) is None]


@pytest.mark.filterwarnings("ignore:.*out of date")
@pytest.mark.parametrize("env_id", OWN)
def test_registered_environment_of_gymnasium_steps(env_id: str):
    if missing := missing_modules(str(OWN[env_id].entry_point)):
        pytest.skip(f"{env_id} needs {', '.join(missing)}")
    envs = make_vector(EnvConfig(id=env_id, num_envs=1, action_repeat=1), 1, seed=0)
    try:
        envs.check_interface()
        step, rng = envs.reset(), np.random.default_rng(0)
        for _ in range(3):
            assert all(np.isfinite(value).all() for value in step.observations.values())
            over = step.terminated | step.truncated
            step = envs.reset(over) if over.any() else envs.step(envs.random_action(rng))
            assert np.isfinite(step.reward).all()
    finally:
        envs.close()


def test_classic_control_and_toy_text_need_no_further_module():
    free = [env_id for env_id, spec in OWN.items() if not missing_modules(str(spec.entry_point))]
    assert {"CartPole-v1", "Pendulum-v1", "Blackjack-v1", "Taxi-v4"} <= set(free)
