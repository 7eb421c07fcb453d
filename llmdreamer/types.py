"""The records that stages hand to each other; shapes as in docs/shapes.md.

B batch, T time, H horizon, N imagined starts, A action, E embedding, D recurrent state,
S x K stochastic state, F = D + S*K feature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Metrics = dict[str, Tensor]
"""Scalars, left on the device until they are logged."""


@dataclass(frozen=True)
class EnvSpec:
    """What an environment shows and takes, after wrapping.

    Every observation is a float32 array (vectors) or uint8 array (images) under a key; a plain
    (not Dict) observation space is the single key `state`. A discrete action is one-hot, (A,).
    """

    observations: dict[str, tuple[int, ...]]
    action_size: int
    discrete: bool
    action_repeat: int = 1


@dataclass(frozen=True)
class TimeStep:
    """One row of each of the environments: what is seen on arriving, n of them side by side.

    `reward` was received on arriving at `observations`. A row with `terminated` or `truncated` is an
    episode's last: no action follows it. A row with `is_first` has reward 0 and both flags false.
    """

    observations: dict[str, NDArray]  # (n, ...)
    reward: NDArray[np.float32]  # (n,)
    is_first: NDArray[np.bool_]  # (n,)
    terminated: NDArray[np.bool_]  # (n,)
    truncated: NDArray[np.bool_]  # (n,)


@dataclass(frozen=True)
class SequenceBatch:
    """B pieces of experience, each T + 1 consecutive rows of one environment's stream.

    Row 0 is context: its observation and action enter the first token and nothing else. Episodes may
    begin and end anywhere inside. `action[:, t]` is chosen after seeing row t (zeros on an episode's
    last row); `reward[:, t]` is received on arriving at row t.
    """

    observations: dict[str, Tensor]  # each (B, T + 1, ...)
    action: Tensor  # (B, T + 1, A)
    reward: Tensor  # (B, T + 1)
    is_first: Tensor  # (B, T + 1), bool
    terminated: Tensor  # (B, T + 1), bool


class Latent(NamedTuple):
    """The world model's belief: deterministic memory and stochastic state."""

    deter: Tensor  # (..., D)
    stoch: Tensor  # (..., S, K), one-hot
