"""The records that stages hand to each other; shapes as in docs/shapes.md.

B batch, T time, H horizon, N imagined starts, A action, E embedding, D recurrent state,
S x K stochastic state, F = D + S*K feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # an environment's process reads this file, and has no use for torch
    import torch
    from torch import Tensor

Metrics: TypeAlias = "dict[str, Tensor]"
"""Scalars, left on the device until they are logged."""

Kind = Literal["vector", "image", "text"]


@dataclass(frozen=True)
class EnvSpec:
    """What an environment shows and takes, after wrapping.

    Every observation is under a key: a float32 array (a vector), a uint8 array (H, W, C) (an image),
    or uint8 bytes of UTF-8, zeros behind (a text). A plain (not Dict) observation space is the single
    key `state`, `image` or `text`.

    An action is A float32 numbers: where `discrete`, the one-hot choices of one or several independent
    categoricals side by side; else each in [-1, 1], the bounds of the environment's Box.
    """

    observations: dict[str, tuple[int, ...]]
    action_size: int
    discrete: bool
    action_repeat: int = 1
    groups: tuple[int, ...] = ()
    """How many choices each of the categoricals has, A in sum; empty: it is one, of A choices."""
    texts: tuple[str, ...] = ()
    """The keys that are texts."""

    @property
    def choices(self) -> tuple[int, ...]:
        """The sizes of a discrete action's categoricals, one at least."""
        return self.groups or (self.action_size,)

    def kind(self, key: str) -> Kind:
        """What is shown under a key."""
        if key in self.texts:
            return "text"
        return "image" if len(self.observations[key]) == 3 else "vector"

    def keys(self, kind: Kind) -> list[str]:
        """The keys of a kind, in the environment's order."""
        return [key for key in self.observations if self.kind(key) == kind]


@dataclass(frozen=True)
class TimeStep:
    """One row of each of the environments: what is seen on arriving, n of them side by side.

    `reward` was received on arriving at `observations`. A row with `terminated` or `truncated` is an
    episode's last: no action follows it. A row with `is_first` has reward 0 and both flags false;
    where an environment was lost on its first step, that row is stored as truncated.
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

    def to(self, device: torch.device, but: Sequence[str] = ()) -> SequenceBatch:
        """The same there, but for the observations `but`: texts are read where their bytes are."""
        return SequenceBatch(
            {
                key: value if key in but else value.to(device)
                for key, value in self.observations.items()
            },
            self.action.to(device),
            self.reward.to(device),
            self.is_first.to(device),
            self.terminated.to(device),
        )


class Latent(NamedTuple):
    """The world model's belief: deterministic memory and stochastic state."""

    deter: Tensor  # (..., D)
    stoch: Tensor  # (..., S, K), one-hot


@dataclass(frozen=True)
class Code:
    """A vector of plain numbers and one-hot categoricals behind them, those as the places of their ones.

    So is a latent in imagination: its recurrent state, then its stochastic one. An `MLP` reads it as the
    feature it stands for, without multiplying by the zeros. It carries no gradient.
    """

    dense: Tensor  # (..., D)
    ones: Tensor  # (..., S), int64: s * K + k, where categorical s is of class k

    def __getitem__(self, rows: Any) -> Code:
        """Those of the leading dimensions."""
        return Code(self.dense[rows], self.ones[rows])
