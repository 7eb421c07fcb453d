"""One gradient update of the whole agent: start reading the algorithm here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmdreamer.behavior.imagine import imagine, sample_starts, with_certain_ends
from llmdreamer.training.clock import Clock
from llmdreamer.types import Metrics, SequenceBatch

if TYPE_CHECKING:
    from llmdreamer.agent.agent import Agent
    from llmdreamer.config import AlgoConfig
    from llmdreamer.training.optimizer import AgentOptimizer


class Learner:
    """Trains an agent on batches of replayed sequences."""

    def __init__(self, agent: Agent, optimizer: AgentOptimizer, algo: AlgoConfig) -> None:
        self.agent = agent
        self.optimizer = optimizer
        self.algo = algo
        assert algo.imag_starts is not None, "config.load replaces null"
        self.imag_starts = algo.imag_starts
        self.clock = Clock()

    def update(self, batch: SequenceBatch) -> Metrics:
        """Train on a batch and return its metrics, scalars on the device.

        An update that is not finite is skipped and marked in the metrics.
        """
        loss, metrics = self.loss(batch)
        metrics |= self.optimizer.step(loss)
        self.agent.behavior.update_slow_critic()
        return metrics

    def loss(self, batch: SequenceBatch) -> tuple[Tensor, Metrics]:
        """Return the scalar loss (world model + actor + critic) and the metrics.

        `batch` holds B sequences of 1 + T time steps.
        """
        world_model, behavior, algo = self.agent.world_model, self.agent.behavior, self.algo
        sequences, length = batch.reward[:, 1:].shape  # step 0 is context: B sequences of T steps

        # 1. World model: encode the batch, predict it, pull prior and posterior together. A latent is (h, z).
        with self._stage("world_model"):
            world = world_model.loss(batch)

        # 2. Imagination: follow the policy for H steps from some of the posterior latents of stage 1.
        with self._stage("imagination"):
            starts = sample_starts(  # (B, n)
                sequences, length, self.imag_starts, batch.reward.device
            )
            imagined = imagine(
                world_model, behavior.actor.sample, world.observed, starts, algo.horizon
            )
            if not algo.world_model.discount_in_continue_head:  # algo=dreamer_v3_2023
                terminated = batch.terminated[:, 1:].gather(1, starts).flatten()
                imagined = with_certain_ends(imagined, algo.gamma, terminated)

        # 3. Behavior: actor and critic learn from imagined trajectories, without gradient into the world
        # model. The critic also learns from replayed ones, with gradient; their bootstrap is the return
        # imagined at each start.
        with self._stage("behavior"):
            imagination = behavior.imagination_loss(imagined)
            features = world_model.feature(world.observed.latent)
            returns = imagination.returns[:, 0].view_as(starts)
            replay = behavior.replay_loss(features, batch, starts, returns)

        metrics = world.metrics | imagination.metrics | replay.metrics
        return world.loss + imagination.loss + replay.loss, metrics

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        """Time a stage, with matrix products in bfloat16 if precision=bf16.

        Autocast keeps its bfloat16 copies of the weights until it exits. Copies made during imagination
        have no gradient, so a later loss must not reuse them: each stage has a separate context.
        """
        device, enabled = self.agent.device.type, self.algo.precision == "bf16"
        with self.clock.stage(name), torch.autocast(device, torch.bfloat16, enabled=enabled):
            yield
