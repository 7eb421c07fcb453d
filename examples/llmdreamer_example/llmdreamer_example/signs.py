"""DreamerV3 whose actor counts advantages by their sign alone, whatever the scale of returns.

After PMPO (arXiv:2410.04166), which Dreamer 4 uses; without its pull towards an earlier policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from llmdreamer.agent.agent import Agent
from llmdreamer.behavior.actor_critic import Behavior
from llmdreamer.utils.errors import ConfigError

if TYPE_CHECKING:
    from llmdreamer.config import Config
    from llmdreamer.types import EnvSpec


class SignsBehavior(Behavior):
    """Actor and critic; only what the actor raises is another."""

    def actor_objective(self, log_prob: Tensor, advantage: Tensor) -> Tensor:
        """Mean log-probability of the better actions, less that of the worse. All (N, H)."""
        good = self.algo.options["good"]
        weight = good * _share(advantage > 0) - (1 - good) * _share(advantage < 0)
        return log_prob * weight


def _share(chosen: Tensor) -> Tensor:
    """Weights whose mean is 1 over those chosen, 0 elsewhere; all 0 if none are."""
    return chosen.float() / chosen.float().mean().clamp(min=1e-6)


class SignsAgent(Agent):
    """What `algo.agent` names; `good` is one of `algo.options`."""

    behavior_type = SignsBehavior

    def __init__(self, config: Config, spec: EnvSpec, good: float) -> None:
        if not 0 <= good <= 1:
            raise ConfigError(f"algo.options.good={good}: must be in [0, 1]")
        super().__init__(config, spec)
