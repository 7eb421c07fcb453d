"""Test that whole runs survive, or refuse in one line, whatever an environment returns."""

from itertools import count
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from refusals import assert_names

from llmdreamer.training import loop


class Corridor(gym.Env):
    """Four steps to the right end an episode with reward 1. Subclasses each return one thing that is odd."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space = spaces.Box(0, 4, (1,))
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None) -> Any:
        super().reset(seed=seed)
        self.place = 0
        return self.seen(), {}

    def step(self, action) -> Any:
        self.place += 1
        return self.seen(), self.reward(), self.place == 4, False, {}

    def seen(self) -> Any:
        return np.array([self.place], np.float32)

    def reward(self) -> Any:
        return float(self.place == 4)

    def render(self) -> Any:
        return np.zeros((8, 8, 3), np.uint8)


class OldStep(Corridor):
    def step(self, action):
        observation, reward, done, _, info = super().step(action)
        return observation, reward, done, info


class OldReset(Corridor):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0]


class OldArguments(Corridor):
    def reset(self, seed=None):
        return super().reset(seed=seed)


class TextFlag(Corridor):
    def step(self, action):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, "False", truncated, info


class Nothing(Corridor):
    observation_space = spaces.Box(0, 4, (0,))

    def seen(self):
        return np.zeros(0, np.float32)


class ArrayReward(Corridor):
    def reward(self):
        return np.array([1.0])


class TextRenderer(Corridor):
    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012


class NoRenderer(Corridor):
    def render(self):
        return None


class RaisingRenderer(Corridor):
    def render(self):
        raise RuntimeError


class ListRenderer(Corridor):
    def render(self):
        return [super().render()]


class Broken(Corridor):
    """Works for an episode, then every step has an odd flag."""

    steps = 0

    def step(self, action):
        Broken.steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        wrong = np.array([terminated, truncated])
        return observation, reward, terminated if Broken.steps < 9 else wrong, truncated, info


class Shrinking(Corridor):
    """Has another observation space from the second environment on."""

    made = count()

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        if next(Shrinking.made) > 0:
            self.observation_space = spaces.Box(0, 4, (2,))


KINDS = (
    OldStep,
    OldReset,
    OldArguments,
    TextFlag,
    Nothing,
    ArrayReward,
    Corridor,
    Broken,
    Shrinking,
)
KINDS += (TextRenderer, NoRenderer, RaisingRenderer, ListRenderer)
for kind in KINDS:
    if f"Faults{kind.__name__}-v0" not in gym.registry:
        gym.register(f"Faults{kind.__name__}-v0", kind, max_episode_steps=50)


def options(kind: type) -> list[str]:
    return ["env=gym", f"env.id=Faults{kind.__name__}-v0"]


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (OldStep, ["OldStep", "4 values", "before Gymnasium"]),
        (OldReset, ["OldReset", "reset", "before Gymnasium"]),
        (OldArguments, ["OldArguments", "options", "before Gymnasium"]),
        (TextFlag, ["TextFlag", "terminated", "'False'"]),
        (Nothing, ["observation space", "(0,)"]),
    ],
)
def test_wrong_interface_exits_2_and_leaves_nothing(command, tmp_path, kind, facts):
    code, out, err = command(*options(kind))
    assert_names(err, *facts)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


def test_video_without_rgb_array_exits_2_before_training(command, tmp_path):
    code, out, err = command(*options(TextRenderer), "eval.video=true")
    assert_names(err, "FaultsTextRenderer-v0", "rgb_array", "eval.video=false")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [NoRenderer, RaisingRenderer, ListRenderer])
def test_render_that_fails_costs_the_video_only(command, tmp_path, kind, caplog):
    code, out, err = command(*options(kind), "eval.video=true", "run_name=r")
    assert code == 0 and "Traceback" not in err
    assert_names(out, "last policy", "plot")
    assert "policy.gif" not in out and not (tmp_path / "outputs/r/policy.gif").exists()
    assert "no video: environment 0" in (tmp_path / "outputs/r/run.log").read_text()


def test_render_with_images_makes_a_video(command, tmp_path):
    code, out, _ = command(*options(Corridor), "eval.video=true", "run_name=r")
    assert code == 0 and "policy.gif" in out
    assert (tmp_path / "outputs/r/policy.gif").read_bytes()[:3] == b"GIF"


def test_plot_that_fails_costs_the_plot_only(command, tmp_path, monkeypatch):
    def fail(run_dir):
        raise RuntimeError("no fonts")

    monkeypatch.setattr(loop, "plot_returns", fail)
    code, out, err = command(*options(ArrayReward), "run_name=r")
    assert code == 0 and "Traceback" not in err and "returns.png" not in out
    assert "no plot: RuntimeError: no fonts" in (tmp_path / "outputs/r/run.log").read_text()


def test_wrong_flag_in_mid_run_exits_1_in_one_line(command):
    Broken.steps = 0
    code, _, err = command(*options(Broken), "env.max_restarts=1")
    last = err.strip().splitlines()[-1]
    assert code == 1 and "Traceback" not in err
    assert_names(last, "environment 0", "terminated", "(2,)", "env.max_restarts=1")


def test_space_that_changes_before_evaluation_exits_1_in_one_line(command):
    Shrinking.made = count()
    code, _, err = command(*options(Shrinking))
    assert code == 1 and "Traceback" not in err
    assert_names(err.strip().splitlines()[-1], "environment 0", "(2,)", "(1,)")


def test_blackjack_trains_without_naming_its_keys(command):
    code, out, _ = command("env=gym", "env.id=Blackjack-v1")
    assert code == 0
    assert_names(out, "last policy")
