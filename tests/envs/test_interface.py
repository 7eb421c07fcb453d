"""Test that an environment with a wrong interface is refused, and that a faulty step is restarted."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import count
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from refusals import assert_names, refused
from toys import action

from llmdreamer.envs import EnvError, VectorEnv, VectorOptions
from llmdreamer.envs.wrappers import ActionRepeat
from llmdreamer.types import EnvSpec
from llmdreamer.utils.errors import ConfigError

ZEROS = np.zeros(2, np.float32)
Step = tuple[Any, ...]


class Strange(gym.Env):
    """Returns `faulty(observation)` from step number `at` of its process on, otherwise what is right."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(3)

    def __init__(self, faulty: Callable[[], Any], at: int = 1, once: bool = False) -> None:
        self.faulty, self.at, self.once, self.steps = faulty, at, once, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return ZEROS, {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.at or (self.steps > self.at and not self.once):
            return self.faulty()
        return ZEROS, 1.0, False, False, {}


class StrangeReset(Strange):
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.faulty()


class OldReset(Strange):
    """Its `reset` has no `options`, as before Gymnasium."""

    def reset(self, seed=None):
        return ZEROS, {}


class OldestReset(Strange):
    """Its `reset` takes nothing."""

    def reset(self):
        return ZEROS


def right() -> Step:
    return ZEROS, 1.0, False, False, {}


def raiser(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


def limited(env: gym.Env) -> gym.Env:
    """Wrap as `gym.make` does: the wrappers unpack the values before the project sees them."""
    return gym.wrappers.TimeLimit(gym.wrappers.OrderEnforcing(env), 100)


def vector(make: Callable[[], gym.Env], restarts: int = 0) -> VectorEnv:
    return VectorEnv([make], 0, VectorOptions(max_restarts=restarts))


class TextlessError(Exception):
    pass


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


WRONG_STEPS: dict[str, tuple[Any, list[str]]] = {
    "four values": ((ZEROS, 1.0, False, {}), ["4", "before Gymnasium"]),
    "none": (None, ["None"]),
    "reward none": ((ZEROS, None, False, False, {}), ["reward", "None"]),
    "reward text": ((ZEROS, "x", False, False, {}), ["reward", "'x'"]),
    "reward complex": ((ZEROS, 1j, False, False, {}), ["reward", "1j"]),
    "two rewards": ((ZEROS, np.ones(2), False, False, {}), ["reward", "2 numbers"]),
    "two flags": ((ZEROS, 1.0, np.ones(2, bool), False, {}), ["terminated", "(2,)"]),
    "text flag": ((ZEROS, 1.0, "False", False, {}), ["terminated", "'False'"]),
    "none flag": ((ZEROS, 1.0, False, None, {}), ["truncated", "None"]),
    "complex": ((ZEROS * 1j, 1.0, False, False, {}), ["state", "complex"]),
    "shape": ((np.zeros(3), 1.0, False, False, {}), ["state", "(3,)"]),
    "no observation": ((None, 1.0, False, False, {}), ["state", "None"]),
}
WRONG_VALUES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "large reward": (lambda: (ZEROS, 10**400, False, False, {}), ["reward", "inf"]),
    "nan": (lambda: (ZEROS * np.nan, 1.0, False, False, {}), ["state", "NaN"]),
    "huge": (lambda: ([10**400, 0], 1.0, False, False, {}), ["state", "infinite"]),
    "raises": (raiser(OSError("gone")), ["OSError: gone"]),
    "exits": (raiser(SystemExit(0)), ["SystemExit"]),
    "without text": (raiser(TextlessError()), ["TextlessError"]),
    "unprintable": (raiser(UnprintableError()), ["UnprintableError"]),
    "two lines": (raiser(OSError("a\nb")), ["OSError: a b"]),
}


@pytest.mark.parametrize("wrap", [lambda env: env, limited], ids=["bare", "wrapped"])
@pytest.mark.parametrize("case", WRONG_STEPS)
def test_wrong_step_is_refused_before_the_first_episode(case, wrap):
    result, facts = WRONG_STEPS[case]
    with refused(ConfigError, "interface of Gymnasium", *facts):
        vector(lambda: wrap(Strange(lambda: result))).check_interface()


@pytest.mark.parametrize("wrap", [lambda env: env, limited], ids=["bare", "wrapped"])
@pytest.mark.parametrize("case", WRONG_STEPS)
def test_wrong_step_in_mid_run_restarts_then_ends_in_one_line(case, wrap, caplog):
    result, _ = WRONG_STEPS[case]
    envs = vector(lambda: wrap(Strange(lambda: result, at=4)), restarts=1)
    envs.check_interface()
    envs.reset()
    for _ in range(2):
        assert not envs.step(action(0)).is_first[0]
    with caplog.at_level(logging.WARNING):
        assert envs.step(action(0)).is_first[0]
    assert_names(caplog.messages[0], "environment 0, policy step 3", "1 of 1")
    with refused(EnvError, "environment 0", "env.max_restarts=1"):
        for _ in range(5):
            envs.step(action(0))


@pytest.mark.parametrize("case", WRONG_VALUES)
def test_wrong_value_is_no_wrong_interface_and_restarts(case, caplog):
    faulty, facts = WRONG_VALUES[case]
    envs = vector(lambda: Strange(faulty, at=2, once=True), restarts=1)
    envs.check_interface()
    envs.reset()
    with caplog.at_level(logging.WARNING):
        assert envs.step(action(0)).is_first[0]
    assert len(caplog.messages) == 1 and "\n" not in caplog.messages[0]
    assert_names(caplog.messages[0], "environment 0", "1 of 1", *facts)


@pytest.mark.parametrize("repeat", [1, 2])
def test_reward_of_one_number_in_an_array_is_used(repeat: int):
    envs = vector(
        lambda: ActionRepeat(Strange(lambda: (ZEROS, np.ones(1), False, False, {})), repeat)
    )
    envs.check_interface()
    envs.reset()
    assert envs.step(action(0)).reward.tolist() == [repeat]


@pytest.mark.parametrize("case", ["four values", "none", "two flags", "text flag", "reward text"])
def test_wrong_step_below_action_repeat_is_refused(case):
    result, facts = WRONG_STEPS[case]
    with refused(ConfigError, "interface of Gymnasium", *facts):
        vector(lambda: ActionRepeat(Strange(lambda: result), 2)).check_interface()


@pytest.mark.parametrize("wrap", [lambda env: env, limited], ids=["bare", "wrapped"])
@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda: OldReset(right), ["options", "before Gymnasium"]),
        (lambda: OldestReset(right), ["seed and options", "before Gymnasium"]),
        (lambda: StrangeReset(lambda: ZEROS), ["reset returned", "before Gymnasium"]),
        (lambda: StrangeReset(lambda: None), ["reset returned", "None"]),
        (lambda: StrangeReset(lambda: (ZEROS, None)), ["reset returned", "info"]),
        (lambda: StrangeReset(lambda: (ZEROS * 1j, {})), ["state", "complex"]),
    ],
)
def test_wrong_reset_is_refused_before_the_first_episode(make, facts, wrap):
    envs = vector(lambda: wrap(make()))
    if isinstance(make(), OldReset) and not isinstance(wrap(make()), gym.Wrapper):
        envs.check_interface()  # nobody passes options to it, so it works
    else:
        with refused(ConfigError, "interface of Gymnasium", *facts):
            envs.check_interface()


def test_interface_check_does_not_change_the_first_episode():
    def first_steps(check: bool) -> list[list[float]]:
        envs = vector(lambda: gym.make("CartPole-v1"))
        if check:
            envs.check_interface()
        steps = [envs.reset(), *(envs.step(action(i % 2, size=2)) for i in range(5))]
        return [step.observations["state"][0].tolist() for step in steps]

    assert first_steps(True) == first_steps(False)


def test_interface_is_checked_in_worker_processes():
    options = VectorOptions(processes=True)
    envs = VectorEnv([OldWorker], 0, options)
    try:
        with refused(ConfigError, "4 values", "before Gymnasium"):
            envs.check_interface()
    finally:
        envs.close()


class OldWorker(Strange):
    def __init__(self) -> None:
        super().__init__(lambda: (ZEROS, 1.0, False, {}))


class NoSpaces(gym.Env):
    pass


class RaisingSpace(Strange):
    @property
    def observation_space(self):
        raise TextlessError


class NoneSpace(Strange):
    observation_space = None


class NoneActions(Strange):
    action_space = None


class TextSpace(Strange):
    observation_space = "Box(2,)"


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        (RaisingSpace, ["observation_space", "TextlessError"]),
        (NoneSpace, ["observation space", "NoneType"]),
        (TextSpace, ["observation space", "str"]),
        (NoneActions, ["action space", "NoneType"]),
    ],
)
def test_space_that_is_none_or_raises_is_refused(kind, facts):
    with refused(ConfigError, *facts):
        vector(lambda: kind(right))


def test_environment_without_spaces_is_refused():
    with refused(ConfigError, "observation_space", "AttributeError"):
        vector(NoSpaces)


def changing(first: int) -> Callable[[], gym.Env]:
    """Return a factory whose first `first` environments have two numbers, and later ones three."""
    numbers = count()

    def make() -> gym.Env:
        env = Strange(raiser(OSError("gone")), at=2)
        if next(numbers) >= first:
            env.observation_space = spaces.Box(-1, 1, (3,))
        return env

    return make


def test_space_that_differs_between_environments_is_refused():
    make = changing(1)
    with refused(ConfigError, "environment 1", "(3,)", "(2,)"):
        VectorEnv([make, make], 0)


def test_space_that_changes_on_restart_ends_the_run():
    envs = vector(changing(1), restarts=3)
    envs.reset()
    envs.step(action(0))
    with refused(EnvError, "environment 0", "(3,)", "(2,)", "env.max_restarts=3"):
        envs.step(action(0))


def test_space_that_differs_from_the_agents_is_refused():
    envs = vector(lambda: Strange(right))
    envs.check_spec(EnvSpec({"state": (2,)}, 3, discrete=True))
    with refused(EnvError, "(2,)", "(4,)"):
        envs.check_spec(EnvSpec({"state": (4,)}, 3, discrete=True))


class Painter(Strange):
    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, painted: Callable[[], Any]) -> None:
        super().__init__(right)
        self.painted = painted

    def render(self):
        return self.painted()


@pytest.mark.parametrize(
    ("painted", "facts"),
    [
        (lambda: None, ["render", "None"]),
        (lambda: "+--+", ["render", "'+--+'"]),
        (lambda: [np.zeros((4, 4, 3), np.uint8)], ["render", "list"]),
        (raiser(TextlessError()), ["TextlessError"]),
    ],
)
def test_render_that_gives_no_image_raises_env_error(painted, facts):
    envs = vector(lambda: Painter(painted))
    assert envs.renders_images
    envs.reset()
    with refused(EnvError, "environment 0", *facts):
        envs.render()


@pytest.mark.parametrize(
    "metadata", [{"render_modes": ["ansi", "human"]}, {}, None, {"render_modes": None}]
)
def test_environment_without_rgb_array_renders_no_images(metadata):
    env = Painter(lambda: None)
    env.metadata = metadata
    assert not vector(lambda: env).renders_images
