"""DreamerV3 with an actor objective that uses only the signs of advantages, not the scale of returns.

It follows PMPO (arXiv:2410.04166), which Dreamer 4 uses, without its regularization toward an earlier policy.
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
    """Actor and critic with another actor objective."""

    def actor_objective(self, log_prob: Tensor, advantage: Tensor) -> Tensor:
        """Weight log-probabilities: positive advantages raise them, negative ones lower them. All (N, H)."""
        positive_weight = self.algo.options["positive_weight"]
        negative_weight = 1 - positive_weight
        better, worse = _normalize(advantage > 0), _normalize(advantage < 0)
        weight = positive_weight * better - negative_weight * worse
        return log_prob * weight


def _normalize(mask: Tensor) -> Tensor:
    """Scale a mask to mean 1; an empty mask stays 0."""
    return mask.float() / mask.float().mean().clamp(min=1e-6)


class SignsAgent(Agent):
    """The class that `algo.agent` names; `positive_weight` comes from `algo.options`."""

    behavior_type = SignsBehavior

    def __init__(self, config: Config, spec: EnvSpec, positive_weight: float) -> None:
        if not 0 <= positive_weight <= 1:
            raise ConfigError(f"algo.options.positive_weight={positive_weight}: must be in [0, 1]")
        super().__init__(config, spec)
