"""The number of gradient updates that the replay ratio allows at each policy step."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from llmdreamer.utils.errors import ConfigError

# A float stands for the nearby fraction with the smallest denominator: 0.1 is 1/10. The rounding error of
# a float (relative 1e-16) is far below the distance between two such fractions.
MAX_DENOMINATOR = 10**7


class ReplayCredit:
    """Counts gradient updates against policy steps, exactly over a whole run.

    Once nothing is due, floor(replay_ratio * (policy_step - prefill)) updates have been made. Updates are
    counted one by one, so a run may stop between two of them and make the rest after it resumes. If it
    resumes with another ratio, that ratio holds for later steps only.

    Args:
        replay_ratio: gradient updates per policy step, prefill excluded; 0 or >= 1e-7.

    Raises:
        ConfigError: if the ratio is negative, not finite, or between 0 and 1e-7.
    """

    def __init__(self, replay_ratio: float) -> None:
        if not math.isfinite(replay_ratio) or replay_ratio < 0:
            raise ConfigError(f"replay_ratio={replay_ratio}: must be a number >= 0")
        self._ratio = Fraction(replay_ratio).limit_denominator(MAX_DENOMINATOR)
        if replay_ratio > 0 and self._ratio == 0:
            raise ConfigError(f"replay_ratio={replay_ratio}: must be 0 or >= 1e-7")
        self._updates = 0
        self._steps = 0  # the latest step seen, prefill excluded
        self._since = 0  # the step at which the ratio changed
        self._before = Fraction(0)  # updates allowed up to then

    def total(self, policy_step: int, prefill: int) -> int:
        """Return the number of updates allowed up to `policy_step`, made ones included."""
        return math.floor(self._at(max(0, policy_step - prefill)))

    def _at(self, steps: int) -> Fraction:
        return self._before + self._ratio * (steps - self._since)

    def due(self, policy_step: int, prefill: int) -> int:
        """Return the number of updates allowed and not yet made.

        Args:
            policy_step: actions chosen so far in all environments, prefill included.
            prefill: actions chosen before learning starts; they allow no update.
        """
        self._steps = max(self._steps, policy_step - prefill)
        return max(0, self.total(policy_step, prefill) - self._updates)

    def count_update(self) -> None:
        """Count one update, which the caller makes now."""
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the updates made, and the ratio with the step since which it holds."""
        return {
            "updates": self._updates,
            "steps": self._steps,
            "ratio": list(self._ratio.as_integer_ratio()),
            "since": self._since,
            "before": list(self._before.as_integer_ratio()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; the present ratio holds from its latest step on."""
        self._updates = int(state["updates"])
        self._steps, self._since = state["steps"], state["since"]
        self._before, ratio = Fraction(*state["before"]), Fraction(*state["ratio"])
        if ratio != self._ratio:
            self._before += ratio * (self._steps - self._since)
            self._since = self._steps
