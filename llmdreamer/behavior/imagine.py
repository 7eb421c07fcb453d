"""Rolls the policy out in the world model's imagination."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from llmdreamer.types import Code


@dataclass(frozen=True)
class Imagined:
    """N trajectories of H imagined steps; nothing in it carries a gradient."""

    features: Tensor | Code  # (N, H + 1, F)
    action: Tensor  # (N, H, A), chosen in states 0..H-1
    reward: Tensor  # (N, H), expected on entering states 1..H
    discount: Tensor  # (N, H + 1), gamma * P(continue) of each state, the first too


class Dreams(Protocol):
    """What imagination needs of a world model."""

    def dream(self, latent: Code, action: Tensor, state: Any) -> tuple[Code, Any]: ...

    def predict(self, features: Code) -> tuple[Tensor, Tensor]: ...


def dream_on(
    world: Dreams, policy: Callable[[Code], Tensor], latent: Code, state: Any
) -> tuple[Tensor, Code, Any]:
    """One step: the actions chosen in N latents, (N, A), the latents they lead to, and the state."""
    action = policy(latent)
    return action, *world.dream(latent, action, state)


@torch.no_grad()
def imagine(
    world: Dreams,
    policy: Callable[[Code], Tensor],
    latent: Code,
    state: Any,
    horizon: int,
    step: Callable[[Code, Any], tuple[Tensor, Code, Any]] | None = None,
) -> Imagined:
    """Follow `policy` for `horizon` steps from each of N latents.

    There is no gradient through the dream: both kinds of action are learned by REINFORCE, as in the
    2025 recipe, so the dynamics need not be differentiated.

    Args:
        policy: latents to sampled actions (N, A).
        latent: (N, D), (N, S).
        state: the memory behind each latent.
        step: what is called for `dream_on` of this world and policy, if it has another form.
    """
    if step is None:
        step = partial(dream_on, world, policy)
    latents, actions = [latent], []
    for _ in range(horizon):
        action, latent, state = step(latent, state)
        actions.append(action)
        latents.append(latent)
    trajectory = Code(
        torch.stack([one.dense for one in latents], 1),
        torch.stack([one.ones for one in latents], 1),
    )
    reward, discount = world.predict(trajectory)
    return Imagined(trajectory, torch.stack(actions, 1), reward[:, 1:], discount)
