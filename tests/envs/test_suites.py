"""Test the real environments of optional packages where they are installed, and our own."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import numpy as np
import pytest
from refusals import refused

from llmdreamer.envs import VectorEnv, make_vector
from llmdreamer.types import TimeStep
from llmdreamer.utils.errors import ConfigError


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


def random_steps(envs: VectorEnv, count: int) -> list[TimeStep]:
    """Return the first time step and `count` more, with random actions and a reset after each episode."""
    rng, steps = np.random.default_rng(0), [envs.reset()]
    for _ in range(count):
        over = steps[-1].terminated | steps[-1].truncated
        steps.append(envs.reset(over) if over.any() else envs.step(envs.random_action(rng)))
    return steps


@pytest.fixture
def made(compose):
    """Return a function that makes the environments of a command line, as a run does."""
    opened: list[VectorEnv] = []

    def make(*overrides: str, render: bool = False) -> VectorEnv:
        opened.append(make_vector(compose(*overrides).env, 1, 0, render))
        return opened[-1]

    yield make
    for envs in opened:
        envs.close()


# --- DeepMind Control --------------------------------------------------------------------------


@needs("dm_control")
def test_dmc_task_is_truncated_after_1000_control_steps(made):
    envs = made("env=dmc")
    assert envs.spec.observations == {"state": (5,)} and envs.spec.action_repeat == 2
    assert (envs.spec.action_size, envs.spec.discrete) == (1, False)
    steps = random_steps(envs, 500)
    assert [step.truncated[0] for step in steps[-2:]] == [False, True]
    assert not any(step.terminated[0] for step in steps)
    assert 100 < sum(float(step.reward[0]) for step in steps) < 1000


@needs("dm_control")
def test_dmc_limit_counts_control_steps_and_seed_repeats(made):
    short = made("env=dmc", "env.id=dmc:ball_in_cup-catch", "env.max_episode_steps=5")
    steps = random_steps(short, 3)  # 2, 4 and 5 control steps
    assert [step.truncated[0] for step in steps] == [False, False, False, True]
    repeated = random_steps(made("env=dmc", "env.id=dmc:ball_in_cup-catch"), 2)
    for step, other in zip(steps, repeated, strict=False):
        np.testing.assert_array_equal(step.observations["state"], other.observations["state"])


@needs("dm_control")
def test_unknown_dmc_task_suggests_the_nearest(made):
    with refused(ConfigError, "env.id=dmc:cartpole-balanse", "'cartpole-balance'"):
        made("env=dmc", "env.id=dmc:cartpole-balanse")


@needs("dm_control")
def test_dmc_pixels_observes_images(made):
    try:
        envs = made("env=dmc_pixels", "env.image_size=32")
        steps = random_steps(envs, 2)
    except Exception as error:  # noqa: BLE001 (a graphics driver may raise anything)
        pytest.skip(f"cannot render without a screen: {error}")
    images = [step.observations["image"][0] for step in steps]
    assert images[0].shape == (32, 32, 3) and images[0].dtype == np.uint8
    assert images[0].std() > 5 and (images[0] != images[2]).any()


# --- MiniGrid ------------------------------------------------------------------------------------


@needs("minigrid")
def test_minigrid_observes_mission_and_image(made):
    envs = made("env=minigrid", "env.id=BabyAI-GoToObj-v0")
    assert envs.spec.keys("text") == ["mission"] and envs.spec.keys("image") == ["image"]
    steps = random_steps(envs, 30)
    missions = {bytes(step.observations["mission"][0]).rstrip(b"\0").decode() for step in steps}
    assert all(mission.startswith("go to the ") for mission in missions)
    assert steps[0].observations["image"].shape == (1, 64, 64, 3)
    assert len({step.observations["image"].tobytes() for step in steps}) > 3


@needs("minigrid")
def test_minigrid_symbolic_view_has_one_pixel_per_cell(made):
    envs = made("env=minigrid", "env.id=MiniGrid-Empty-5x5-v0", "env.kwargs.view=symbolic")
    steps = random_steps(envs, 5)
    types = set(np.unique(steps[0].observations["image"][0, ..., 0]).tolist())
    assert types <= {25 * type_ for type_ in range(11)} and len(types) > 1
    with refused(ConfigError, "env.kwargs.view=3d", "rgb, symbolic"):
        made("env=minigrid", "env.kwargs.view=3d")


@needs("minigrid")
def test_fetch_two_rewards_only_the_requested_ball(made):
    level = ("env=minigrid", "env.id=MiniGrid-FetchTwo-5x5-v0", "env.kwargs.view=symbolic")
    steps = random_steps(made(*level), 600)
    last_steps = [step for step in steps if step.terminated[0]]
    color = {b"get a red ball": 0, b"get a blue ball": 100}  # values of the second channel
    outcomes = set()
    for step in last_steps:
        mission = bytes(step.observations["mission"][0]).rstrip(b"\0")
        held = step.observations["image"][0, 32, -1]  # in the agent's own cell
        assert held[0] == 150, "a ball"
        assert (step.reward[0] > 0) == (held[1] == color[mission])
        outcomes.add((mission, bool(step.reward[0] > 0)))
    assert len(outcomes) == 4, "each ball is requested, and each is taken, right or wrong"


@needs("minigrid")
def test_unknown_minigrid_level_suggests_the_nearest(made):
    with refused(ConfigError, "env.id=BabyAI-GoToRedBalGrey-v0", "'BabyAI-GoToRedBal"):
        made("env=minigrid", "env.id=BabyAI-GoToRedBalGrey-v0")


# --- Atari ---------------------------------------------------------------------------------------


@needs("ale_py")
def test_atari_defaults_are_64_pixels_18_actions_4_frames(made):
    envs = made("env=atari")
    assert envs.spec.observations == {"image": (64, 64, 3)}
    assert (envs.spec.action_size, envs.spec.action_repeat) == (18, 4)
    ale = envs._workers[0]._simulator._env.unwrapped.ale
    assert ale.getFloat("repeat_action_probability") == 0.25
    steps = random_steps(envs, 30)
    assert ale.getEpisodeFrameNumber() == 120
    assert len({step.observations["image"].tobytes() for step in steps}) > 10


@needs("ale_py")
def test_atari_limit_counts_frames(made):
    steps = random_steps(made("env=atari", "env.max_episode_steps=10"), 3)  # 4, 8 and 10 frames
    assert [step.truncated[0] for step in steps] == [False, False, False, True]


@needs("ale_py")
def test_atari_observes_the_maximum_of_the_last_two_frames():
    import toys

    from llmdreamer.envs.atari import MaxPooledActionRepeat

    env = MaxPooledActionRepeat(toys.Blink(), 4)
    env.reset()
    observation, reward, *_ = env.step(0)
    # Frames 1 to 4 light one pixel each. The last two are frames 3 and 4.
    assert observation.flatten().tolist() == [0, 0, 0, 255, 255] and reward == 4


# --- MuJoCo --------------------------------------------------------------------------------------


@needs("mujoco", "imageio")
def test_mujoco_half_cheetah_runs(made):
    envs = made("env=mujoco")
    assert envs.spec.observations == {"state": (17,)}
    assert (envs.spec.action_size, envs.spec.discrete) == (6, False)
    steps = random_steps(envs, 20)
    assert len({step.observations["state"].tobytes() for step in steps}) == 21


# --- Missing packages ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "package"),
    [("dmc", "dm_control"), ("minigrid", "minigrid"), ("atari", "ale_py"), ("mujoco", "mujoco")],
)
def test_missing_package_error_names_the_extra(made, monkeypatch, option: str, package: str):
    importers = (package, f"llmdreamer.envs.{option}", "gymnasium.envs.mujoco")
    for name in list(sys.modules):
        if f"{name}.".startswith(tuple(f"{importer}." for importer in importers)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it now raises
    with refused(ConfigError, f"env={option}", package, f"pip install 'llmdreamer[{option}]'"):
        made(f"env={option}")


# --- Our own environment, and a user's ------------------------------------------------------------


def walk(envs: VectorEnv, turn: Any) -> tuple[list[TimeStep], float]:
    """Walk an episode of a T-maze of length 3; `turn` chooses the last action from the sign."""
    steps = [envs.reset()]
    sign = steps[0].observations["state"][0, 0]
    for action in [0, 1, 0, turn(sign)]:
        steps.append(envs.step(np.eye(2, dtype=np.float32)[[action]]))
    return steps, sign


def test_tmaze_reward_depends_on_the_first_observation_only(made):
    envs = made("env=tmaze", "env.kwargs.length=3")
    signs = set()
    for _ in range(8):
        steps, sign = walk(envs, lambda sign: 1 if sign > 0 else 0)
        signs.add(float(sign))
        assert [step.observations["state"][0].tolist() for step in steps[1:4]] == [
            [0, 0], [0, 0], [0, 1]
        ]  # fmt: skip
        assert [float(step.reward[0]) for step in steps] == [0, 0, 0, 0, 1]
        assert steps[-1].terminated[0]
    assert signs == {-1.0, 1.0}
    wrong, _ = walk(envs, lambda sign: 0 if sign > 0 else 1)
    assert wrong[-1].reward[0] == -1 and wrong[-1].terminated[0]


def test_tmaze_renders_an_image(made):
    envs = made("env=tmaze", "env.kwargs.length=3", render=True)
    envs.reset()
    image = envs.render()
    assert image is not None and image.shape == (48, 64, 3)


def test_environment_of_another_package_loads_by_module(made):
    envs = made("env=gym", "env.id=lightroom:LightRoom-v0", "+env.kwargs.act=box")
    assert envs.spec.observations == {"image": (64, 64, 3), "mission": (128,)}
    assert envs.spec.texts == ("mission",) and not envs.spec.discrete
    envs.reset()
    step = envs.step(np.array([[1.0, 1.0]], np.float32))
    assert (step.observations["image"][0, :, :, 0] == 255).mean() == pytest.approx(0.5, abs=0.02)


def test_cartpole_in_other_units_is_cartpole(made):
    plain = made("~env.vector_scale.state")
    other = made("env=gym", "env.id=lightroom:UnitsCartPole-v0")
    for ours, theirs in zip(random_steps(other, 60), random_steps(plain, 60), strict=True):
        units = np.array([1e-3, 1e3, 1e3, 1e-3], np.float32)
        np.testing.assert_allclose(
            ours.observations["state"], theirs.observations["state"] * units, rtol=1e-6
        )
        assert ours.reward == 100 * theirs.reward and ours.terminated == theirs.terminated
