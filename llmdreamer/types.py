"""The records that the stages pass to each other. Shapes are those of docs/shapes.md.

B batch, T time, H horizon, N imagined starts, A action, E embedding, D recurrent state,
S x K stochastic state, F = D + S*K feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # environment processes import this file and do not need torch
    import torch
    from torch import Tensor

Metrics: TypeAlias = "dict[str, Tensor]"
"""Scalars, left on the device until they are logged."""

Kind = Literal["vector", "image", "text"]


@dataclass(frozen=True)
class EnvSpec:
    """The observations and actions of an environment, after wrapping.

    Every observation has a key. It is a float32 array (a vector), a uint8 array (H, W, C) (an image), or
    uint8 bytes of UTF-8 padded with zeros (a text). An observation space that is no Dict or Tuple has the
    single key `state`, `image` or `text`. In nested spaces the key is the path, such as `a.b` or `0`.

    An action is A float32 numbers. If `discrete`, they are the concatenated one-hot vectors of one or several
    independent categoricals. Otherwise each number is in [-1, 1], which stands for the bounds of the Box.
    """

    observations: dict[str, tuple[int, ...]]
    action_size: int
    discrete: bool
    action_repeat: int = 1
    groups: tuple[int, ...] = ()
    """Size of each categorical, A in sum; empty: one categorical of size A."""
    texts: tuple[str, ...] = ()
    """The keys of the observations that are texts."""

    @property
    def choices(self) -> tuple[int, ...]:
        """The size of each categorical of a discrete action."""
        return self.groups or (self.action_size,)

    def kind(self, key: str) -> Kind:
        """Return the kind of the observation under a key."""
        if key in self.texts:
            return "text"
        return "image" if len(self.observations[key]) == 3 else "vector"

    def keys(self, kind: Kind) -> list[str]:
        """Return the keys of a kind, in the environment's order."""
        return [key for key in self.observations if self.kind(key) == kind]


@dataclass(frozen=True)
class TimeStep:
    """One time step of n environments.

    `reward` was received on arriving at `observations`. A step with `terminated` or `truncated` is the
    last of its episode: no action follows it. A step with `is_first` has reward 0 and both flags false.
    If the environment was lost on its first step, that step is stored as truncated.
    """

    observations: dict[str, NDArray]  # (n, ...)
    reward: NDArray[np.float32]  # (n,)
    is_first: NDArray[np.bool_]  # (n,)
    terminated: NDArray[np.bool_]  # (n,)
    truncated: NDArray[np.bool_]  # (n,)


@dataclass(frozen=True)
class SequenceBatch:
    """B sequences, each of T + 1 consecutive time steps of one environment.

    Step 0 is context: its observation and action enter the first token and nothing else. Episodes may begin
    and end at any step. `action[:, t]` is chosen after seeing step t (zeros on an episode's
    last step); `reward[:, t]` is received on arriving at step t.
    """

    observations: dict[str, Tensor]  # each (B, T + 1, ...)
    action: Tensor  # (B, T + 1, A)
    reward: Tensor  # (B, T + 1)
    is_first: Tensor  # (B, T + 1), bool
    terminated: Tensor  # (B, T + 1), bool
    is_first_on_cpu: Tensor | None = None
    """`is_first` on the CPU, if the batch was copied from there."""

    @property
    def planned_is_first(self) -> Tensor:
        """`is_first`, on the CPU if possible: code whose sizes depend on it need not wait for a device."""
        return self.is_first if self.is_first_on_cpu is None else self.is_first_on_cpu

    def to(self, device: torch.device, but: Sequence[str] = ()) -> SequenceBatch:
        """Copy the batch to a device, except for the observations `but`: texts are read on the CPU.

        From the CPU, the copy does not wait for the device.
        """
        return SequenceBatch(
            {
                key: value if key in but else _upload(value, device)
                for key, value in self.observations.items()
            },
            _upload(self.action, device),
            _upload(self.reward, device),
            _upload(self.is_first, device),
            _upload(self.terminated, device),
            self.is_first if self.is_first.device.type == "cpu" else self.is_first_on_cpu,
        )


def _upload(tensor: Tensor, device: torch.device) -> Tensor:
    # Only a copy from pinned memory is asynchronous.
    pinned = device.type == "cuda" and tensor.device.type == "cpu"
    return (tensor.pin_memory() if pinned else tensor).to(device, non_blocking=True)


class Latent(NamedTuple):
    """The world model's latent: deterministic and stochastic part."""

    deter: Tensor  # (..., D)
    stoch: Tensor  # (..., S, K), one-hot

    def indexed(self) -> IndexedLatent:
        """Return the same latent without gradient, with its categoricals by index."""
        classes = self.stoch.argmax(-1, keepdim=True)
        return IndexedLatent.from_classes(self.deter.detach(), classes, self.stoch.shape[-1])


@dataclass(frozen=True)
class IndexedLatent:
    """A latent whose one-hot categoricals are given by the indices of their ones. It carries no gradient.

    Imagination uses this form: an `MLP` reads it as a feature without multiplying by the zeros.
    """

    deter: Tensor  # (..., D)
    stoch_index: Tensor  # (..., S), int64: s * K + k, where categorical s has class k

    @classmethod
    def from_classes(cls, deter: Tensor, classes: Tensor, size: int) -> IndexedLatent:
        """Build a latent from the class (..., S, 1) of each categorical over `size` classes."""
        import torch

        count = classes.shape[-2]
        first = torch.arange(0, count * size, size, device=deter.device)
        return cls(deter, classes.squeeze(-1) + first)

    def __getitem__(self, index: Any) -> IndexedLatent:
        """Index the leading dimensions."""
        return IndexedLatent(self.deter[index], self.stoch_index[index])
