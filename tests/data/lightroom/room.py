"""A room with two lamps: the mission names one, the reward is 1 while only that one is lit."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

MISSIONS = ("light the red lamp, not the blue one", "light the blue lamp, not the red one")
ACTIONS = {
    "discrete": spaces.Discrete(4),
    "multi": spaces.MultiDiscrete([2, 2, 3]),  # red, blue, and a choice that does nothing
    "list": spaces.Sequence(spaces.Discrete(2)),  # which nobody here can read, nor act by
    "box": spaces.Box(np.array([0.0, -3.0]), np.array([1.0, 3.0]), dtype=np.float64),
}


class LightRoom(gym.Env):
    """Shows `image` (20 x 24 pixels, a half for each lamp), `state` (2) and `mission`.

    Args:
        show: which of the three; one alone is shown without a Dict.
        act: the kind of action space.
        fault: `raise`, `stop`, `leak`, `nan`, `shape`, `exit`, `kill` or `hang` on step 3, once: `once` is
            then made.
        api_key: of nothing.
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 (gymnasium's own spelling)

    def __init__(
        self,
        show: tuple[str, ...] = ("image", "mission"),
        act: str = "discrete",
        fault: str = "",
        once: str = "",
        api_key: str = "",
        render_mode: str | None = None,
    ) -> None:
        parts: dict[str, spaces.Space] = {
            "image": spaces.Box(0, 255, (20, 24, 3), np.uint8),
            "state": spaces.Box(0.0, 1.0, (2,), np.float32),
            "mission": spaces.Text(64),
            "list": ACTIONS["list"],
        }
        shown = {name: parts[name] for name in show}
        self.observation_space = spaces.Dict(shown) if len(show) > 1 else parts[show[0]]
        self.action_space = ACTIONS[act]
        self.show, self.act, self.fault, self.once = list(show), act, fault, once
        self.render_mode, self.api_key = render_mode, api_key

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.mission = int(self.np_random.integers(2))
        self.lamps, self.steps, self.broken = np.zeros(2), 0, False
        return self.observe(), {}

    def step(self, action: Any):
        self.steps += 1
        if self.steps == 3 and self.fault and self.is_first_to_fail():
            self.fail()
        if self.act == "discrete":
            self.lamps = np.array([action % 2, action // 2], float)
        elif self.act == "multi":
            self.lamps = np.asarray(action[:2], float)
        else:
            self.lamps = np.array([action[0] > 0.5, action[1] > 0.0], float)
        reward = float(self.lamps[self.mission] - self.lamps[1 - self.mission])
        return self.observe(), reward, self.steps >= 8, False, {}

    def is_first_to_fail(self) -> bool:
        """Of all processes: only one of them makes the file."""
        try:
            Path(self.once).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def fail(self) -> None:
        if self.fault == "raise":
            raise OSError("a fuse is blown")
        if self.fault == "stop":
            next(iter(()))  # raises StopIteration
        if self.fault == "leak":
            raise OSError(f"login with {self.api_key} failed")
        if self.fault == "exit":
            sys.exit(0)
        if self.fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hang":
            time.sleep(3600)
        self.broken = True

    def observe(self):
        image = np.zeros((20, 24, 3), np.uint8)
        image[:, :12, 0], image[:, 12:, 2] = 255 * self.lamps
        wrong = np.zeros(3) if self.fault == "shape" else np.full(2, np.nan)
        state = wrong if self.broken else self.lamps
        parts = {
            "image": image,
            "state": state.astype(np.float32),
            "mission": MISSIONS[self.mission],
        }
        return (
            {name: parts[name] for name in self.show} if len(self.show) > 1 else parts[self.show[0]]
        )

    def render(self):
        return np.full((8, 8, 3), 255 * self.lamps.mean(), np.uint8)
