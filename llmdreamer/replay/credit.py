"""How many gradient updates the replay ratio owes at each moment of a run."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from llmdreamer.utils.errors import ConfigError

# The fraction meant is the one with the smallest denominator near the float: 0.1 is 1/10, 1/3 is
# 1/3. A float's error (1e-16 of it) is far below the distance of two such fractions.
LARGEST_DENOMINATOR = 10**7


class ReplayCredit:
    """Gradient updates owed, exact over a whole run.

    When nothing is due, the updates handed out are floor(replay_ratio * (policy_step - prefill)) of the
    furthest step told: nothing is lost or gained by rounding. They are handed out one by one, so that a run
    may be stopped between two of them, and goes on with those still due. Gone on with at another ratio, it
    owes by that for the steps that follow, and for those before what it owed then.

    Args:
        replay_ratio: gradient updates per policy step, prefill excluded; 0 or >= 1e-7.

    Raises:
        ConfigError: if the ratio is negative, not finite, or smaller than that.
    """

    def __init__(self, replay_ratio: float) -> None:
        if not math.isfinite(replay_ratio) or replay_ratio < 0:
            raise ConfigError(f"replay_ratio={replay_ratio}: must be a number >= 0")
        self._ratio = Fraction(replay_ratio).limit_denominator(LARGEST_DENOMINATOR)
        if replay_ratio > 0 and self._ratio == 0:
            raise ConfigError(f"replay_ratio={replay_ratio}: must be 0 or >= 1e-7")
        self._updates = 0
        self._steps = 0  # the furthest told, prefill excluded
        self._since = 0  # the step at which the ratio changed
        self._before = Fraction(0)  # what was owed by then

    def owed(self, policy_step: int, prefill: int) -> int:
        """Return the updates of a run up to `policy_step`, those handed out included."""
        return math.floor(self._at(max(0, policy_step - prefill)))

    def _at(self, steps: int) -> Fraction:
        return self._before + self._ratio * (steps - self._since)

    def due(self, policy_step: int, prefill: int) -> int:
        """Return the updates owed and not yet handed out.

        Args:
            policy_step: actions chosen so far in all environments, prefill included.
            prefill: those chosen before learning starts; they owe nothing.
        """
        self._steps = max(self._steps, policy_step - prefill)
        return max(0, self.owed(policy_step, prefill) - self._updates)

    def hand_out(self) -> None:
        """Count an update that the caller now makes."""
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the updates handed out, and by which ratio since when."""
        return {
            "updates": self._updates,
            "steps": self._steps,
            "ratio": list(self._ratio.as_integer_ratio()),
            "since": self._since,
            "before": list(self._before.as_integer_ratio()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._updates = int(state["updates"])
        if "ratio" not in state:  # in checkpoints from before it could change, it is this one
            return
        self._steps, self._since = state["steps"], state["since"]
        self._before, ratio = Fraction(*state["before"]), Fraction(*state["ratio"])
        if ratio != self._ratio:
            self._before += ratio * (self._steps - self._since)
            self._since = self._steps
