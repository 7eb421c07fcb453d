"""Rolls the policy out in the world model's imagination."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from llmdreamer.types import IndexedLatent

SampleAction = Callable[[IndexedLatent], Tensor]
"""A policy as imagination uses it: N latents to sampled actions (N, A)."""


@dataclass(frozen=True)
class Imagined:
    """N trajectories of H imagined steps; nothing in it carries a gradient."""

    features: Tensor | IndexedLatent  # (N, H + 1, F)
    action: Tensor  # (N, H, A), chosen in states 0..H-1
    reward: Tensor  # (N, H), expected on entering states 1..H
    discount: Tensor  # (N, H + 1), gamma * P(continue) of each state, the first too; see with_certain_ends


class ImaginationModel(Protocol):
    """The methods of a world model that imagination uses."""

    def start_imagination(
        self, observed: Any, starts: Tensor, steps: int | None
    ) -> tuple[IndexedLatent, Any]: ...

    def imagine_step(
        self, policy: SampleAction, latent: IndexedLatent, cache: Any
    ) -> tuple[Tensor, IndexedLatent, Any]: ...

    def predict(self, features: IndexedLatent) -> tuple[Tensor, Tensor]: ...

    def merged_adapters(self) -> AbstractContextManager[None]: ...


def sample_starts(batch: int, time: int, count: int, device: torch.device) -> Tensor:
    """Sample, in each sequence, the time steps from which imagination starts: (B, n), distinct, ascending."""
    if count == time:
        return torch.arange(time, device=device).expand(batch, time)
    return torch.rand(batch, time, device=device).topk(count).indices.sort().values


def with_certain_ends(imagined: Imagined, gamma: float, terminated: Tensor) -> Imagined:
    """Replace the probabilities that imagined episodes go on by certainties, as in DreamerV3 of 2023.

    The first state is as it was observed. An imagined state is the last if going on is not more likely
    than ending. Weights then start at 1 instead of gamma.

    Source: danijar/dreamerv3 (2023), `WorldModel.imagine`; SheepRL has the same.

    Args:
        terminated: (N,), bool, of the first states.
    """
    goes_on = imagined.discount[:, 1:] > 0.5 * gamma
    first = (~terminated).unsqueeze(1).to(imagined.discount.dtype)
    return replace(imagined, discount=torch.cat([first, gamma * goes_on], 1))


@torch.no_grad()
def imagine(
    world_model: ImaginationModel, policy: SampleAction, observed: Any, starts: Tensor, horizon: int
) -> Imagined:
    """Follow `policy` for `horizon` steps from N observed latents.

    No gradient flows through imagination: both kinds of action are learned by REINFORCE, as in the
    2025 recipe, so the dynamics need not be differentiated.

    Args:
        observed: sequences that `world_model` has observed.
        starts: (B, n), time steps of the sequences; N = B * n.
    """
    latent, cache = world_model.start_imagination(observed, starts, horizon)
    with world_model.merged_adapters():
        return roll_out(world_model, policy, latent, cache, horizon)


@torch.no_grad()
def roll_out(
    world_model: ImaginationModel,
    policy: SampleAction,
    latent: IndexedLatent,
    cache: Any,
    horizon: int,
) -> Imagined:
    """Follow `policy` for `horizon` steps from each of N latents.

    Args:
        latent: (N, D), (N, S).
        cache: the backbone's cache behind each latent.
    """
    latents, actions = [latent], []
    for _ in range(horizon):
        action, latent, cache = world_model.imagine_step(policy, latent, cache)
        actions.append(action)
        latents.append(latent)
    trajectory = IndexedLatent(
        torch.stack([latent.deter for latent in latents], 1),
        torch.stack([latent.stoch_index for latent in latents], 1),
    )
    reward, discount = world_model.predict(trajectory)
    return Imagined(trajectory, torch.stack(actions, 1), reward[:, 1:], discount)
