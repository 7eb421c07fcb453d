"""How many gradient updates the replay ratio owes at each moment of a run."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

from llmdreamer.errors import ConfigError

# The fraction meant is the one with the smallest denominator near the float: 0.1 is 1/10, 1/3 is
# 1/3. A float's error (1e-16 of it) is far below the distance of two such fractions.
LARGEST_DENOMINATOR = 10**7


class ReplayCredit:
    """Gradient updates owed, exact over a whole run.

    When nothing is due, the updates handed out are floor(replay_ratio * (policy_step - prefill)) of the
    furthest step told: nothing is lost or gained by rounding. They are handed out one by one, so that a run
    may be stopped between two of them, and goes on with those still due.

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

    def due(self, policy_step: int, prefill: int) -> int:
        """Return the updates owed and not yet handed out.

        Args:
            policy_step: actions chosen so far in all environments, prefill included.
            prefill: those chosen before learning starts; they owe nothing.
        """
        owed = math.floor(self._ratio * max(0, policy_step - prefill))
        return max(0, owed - self._updates)

    def hand_out(self) -> None:
        """Count an update that the caller now makes."""
        self._updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the updates handed out."""
        return {"updates": self._updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._updates = int(state["updates"])
