"""The environments of other packages, for real where they are installed."""

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


def live(envs: VectorEnv, steps: int) -> list[TimeStep]:
    """The rows of that many random steps; an episode that is over begins anew."""
    rng, rows = np.random.default_rng(0), [envs.reset()]
    for _ in range(steps):
        over = rows[-1].terminated | rows[-1].truncated
        rows.append(envs.reset(over) if over.any() else envs.step(envs.random_action(rng)))
    return rows


@pytest.fixture
def made(compose):
    """The environments of a command line, as a run would make them."""
    open_: list[VectorEnv] = []

    def make(*overrides: str, render: bool = False) -> VectorEnv:
        open_.append(make_vector(compose(*overrides).env, 1, 0, render))
        return open_[-1]

    yield make
    for envs in open_:
        envs.close()


# --- DeepMind Control --------------------------------------------------------------------------


@needs("dm_control")
def test_a_control_task_is_truncated_after_a_thousand_steps(made):
    envs = made("env=dmc")
    assert envs.spec.observations == {"state": (5,)} and envs.spec.action_repeat == 2
    assert (envs.spec.action_size, envs.spec.discrete) == (1, False)
    rows = live(envs, 500)
    assert [row.truncated[0] for row in rows[-2:]] == [False, True]
    assert not any(row.terminated[0] for row in rows)
    assert 100 < sum(float(row.reward[0]) for row in rows) < 1000


@needs("dm_control")
def test_a_control_tasks_repeat_limit_and_seed(made):
    short = made("env=dmc", "env.id=dmc:ball_in_cup-catch", "env.max_episode_steps=5")
    rows = live(short, 3)  # 2, 4 and 5 of the suite's steps
    assert [row.truncated[0] for row in rows] == [False, False, False, True]
    same = live(made("env=dmc", "env.id=dmc:ball_in_cup-catch"), 2)
    for one, other in zip(rows, same, strict=False):
        np.testing.assert_array_equal(one.observations["state"], other.observations["state"])


@needs("dm_control")
def test_an_unknown_control_task_names_the_nearest(made):
    with refused(ConfigError, "env.id=dmc:cartpole-balanse", "'cartpole-balance'"):
        made("env=dmc", "env.id=dmc:cartpole-balanse")


@needs("dm_control")
def test_a_control_task_shows_pixels(made):
    try:
        envs = made("env=dmc_pixels", "env.image_size=32")
        rows = live(envs, 2)
    except Exception as error:  # noqa: BLE001 (a driver's error may be anything)
        pytest.skip(f"no way to draw without a screen here: {error}")
    pictures = [row.observations["image"][0] for row in rows]
    assert pictures[0].shape == (32, 32, 3) and pictures[0].dtype == np.uint8
    assert pictures[0].std() > 5 and (pictures[0] != pictures[2]).any()


# --- MiniGrid ------------------------------------------------------------------------------------


@needs("minigrid")
def test_a_grid_shows_its_mission_in_words_and_what_is_ahead(made):
    envs = made("env=minigrid", "env.id=BabyAI-GoToObj-v0")
    assert envs.spec.keys("text") == ["mission"] and envs.spec.keys("image") == ["image"]
    rows = live(envs, 30)
    missions = {bytes(row.observations["mission"][0]).rstrip(b"\0").decode() for row in rows}
    assert all(mission.startswith("go to the ") for mission in missions)
    assert rows[0].observations["image"].shape == (1, 64, 64, 3)
    assert len({row.observations["image"].tobytes() for row in rows}) > 3


@needs("minigrid")
def test_a_symbolic_grid_is_a_pixel_a_cell(made):
    envs = made("env=minigrid", "env.id=MiniGrid-Empty-5x5-v0", "env.kwargs.view=symbolic")
    rows = live(envs, 5)
    kinds = set(np.unique(rows[0].observations["image"][0, ..., 0]).tolist())
    assert kinds <= {25 * kind for kind in range(11)} and len(kinds) > 1
    with refused(ConfigError, "env.kwargs.view=3d", "rgb, symbolic"):
        made("env=minigrid", "env.kwargs.view=3d")


@needs("minigrid")
def test_of_two_balls_the_one_asked_for_is_rewarded_and_either_is_the_end(made):
    level = ("env=minigrid", "env.id=MiniGrid-FetchTwo-5x5-v0", "env.kwargs.view=symbolic")
    rows = live(made(*level), 600)
    ends = [row for row in rows if row.terminated[0]]
    colour = {b"get a red ball": 0, b"get a blue ball": 100}  # of the second channel
    outcomes = set()
    for row in ends:
        mission = bytes(row.observations["mission"][0]).rstrip(b"\0")
        held = row.observations["image"][0, 32, -1]  # in the agent's own cell
        assert held[0] == 150, "a ball"
        assert (row.reward[0] > 0) == (held[1] == colour[mission])
        outcomes.add((mission, bool(row.reward[0] > 0)))
    assert len(outcomes) == 4, "each ball is asked for, and each is got, right or wrong"


@needs("minigrid")
def test_a_grid_that_does_not_exist_names_the_nearest(made):
    with refused(ConfigError, "env.id=BabyAI-GoToRedBalGrey-v0", "'BabyAI-GoToRedBal"):
        made("env=minigrid", "env.id=BabyAI-GoToRedBalGrey-v0")


# --- Atari ---------------------------------------------------------------------------------------


@needs("ale_py")
def test_a_game_is_64_pixels_18_actions_and_four_frames_a_step(made):
    envs = made("env=atari")
    assert envs.spec.observations == {"image": (64, 64, 3)}
    assert (envs.spec.action_size, envs.spec.action_repeat) == (18, 4)
    ale = envs._seats[0]._simulator._env.unwrapped.ale
    assert ale.getFloat("repeat_action_probability") == 0.25
    rows = live(envs, 30)
    assert ale.getEpisodeFrameNumber() == 120
    assert len({row.observations["image"].tobytes() for row in rows}) > 10


@needs("ale_py")
def test_a_games_limit_is_in_frames(made):
    rows = live(made("env=atari", "env.max_episode_steps=10"), 3)  # 4, 8 and 10 frames
    assert [row.truncated[0] for row in rows] == [False, False, False, True]


@needs("ale_py")
def test_the_brighter_of_the_last_two_frames_is_shown():
    import toys

    from llmdreamer.envs.atari import PooledRepeat

    env = PooledRepeat(toys.Blink(), 4)
    env.reset()
    shown, reward, *_ = env.step(0)
    # Frames 1 to 4 light one pixel each: 3 and 4 are the last two.
    assert shown.flatten().tolist() == [0, 0, 0, 255, 255] and reward == 4


# --- MuJoCo --------------------------------------------------------------------------------------


@needs("mujoco", "imageio")
def test_a_cheetah_runs(made):
    envs = made("env=mujoco")
    assert envs.spec.observations == {"state": (17,)}
    assert (envs.spec.action_size, envs.spec.discrete) == (6, False)
    rows = live(envs, 20)
    assert len({row.observations["state"].tobytes() for row in rows}) == 21


# --- What is not installed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "package"),
    [("dmc", "dm_control"), ("minigrid", "minigrid"), ("atari", "ale_py"), ("mujoco", "mujoco")],
)
def test_a_missing_package_is_told_with_its_extra(made, monkeypatch, option: str, package: str):
    users = (package, f"llmdreamer.envs.{option}", "gymnasium.envs.mujoco")
    for name in list(sys.modules):
        if f"{name}.".startswith(tuple(f"{user}." for user in users)):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # importing it now raises
    with refused(ConfigError, f"env={option}", package, f"pip install 'llmdreamer[{option}]'"):
        made(f"env={option}")


# --- Ours, and yours -----------------------------------------------------------------------------


def follow(envs: VectorEnv, turn: Any) -> tuple[list[TimeStep], float]:
    rows = [envs.reset()]
    sign = rows[0].observations["state"][0, 0]
    for action in [0, 1, 0, turn(sign)]:
        rows.append(envs.step(np.eye(2, dtype=np.float32)[[action]]))
    return rows, sign


def test_the_mazes_last_choice_depends_on_its_first_row_only(made):
    envs = made("env=tmaze", "env.kwargs.length=3")
    signs = set()
    for _ in range(8):
        rows, sign = follow(envs, lambda sign: 1 if sign > 0 else 0)
        signs.add(float(sign))
        assert [row.observations["state"][0].tolist() for row in rows[1:4]] == [
            [0, 0], [0, 0], [0, 1]
        ]  # fmt: skip
        assert [float(row.reward[0]) for row in rows] == [0, 0, 0, 0, 1]
        assert rows[-1].terminated[0]
    assert signs == {-1.0, 1.0}
    wrong, _ = follow(envs, lambda sign: 0 if sign > 0 else 1)
    assert wrong[-1].reward[0] == -1 and wrong[-1].terminated[0]


def test_the_maze_is_drawn_from_above(made):
    envs = made("env=tmaze", "env.kwargs.length=3", render=True)
    envs.reset()
    picture = envs.render()
    assert picture is not None and picture.shape == (48, 64, 3)


def test_an_environment_of_another_package_is_found_by_its_module(made):
    envs = made("env=gym", "env.id=lightroom:LightRoom-v0", "+env.kwargs.act=box")
    assert envs.spec.observations == {"image": (64, 64, 3), "mission": (128,)}
    assert envs.spec.texts == ("mission",) and not envs.spec.discrete
    both = envs.reset()
    both = envs.step(np.array([[1.0, 1.0]], np.float32))
    assert (both.observations["image"][0, :, :, 0] == 255).mean() == pytest.approx(0.5, abs=0.02)
