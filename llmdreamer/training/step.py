"""One gradient update of the whole agent: start reading the algorithm here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmdreamer.behavior.actor_critic import Replayed
from llmdreamer.behavior.imagine import imagine
from llmdreamer.training.clock import Clock
from llmdreamer.training.compile import Pieces
from llmdreamer.types import Latent, Metrics, SequenceBatch

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
        self.pieces = Pieces(agent, algo.compile)
        self.clock = Clock()  # whoever wants to know where the time goes puts theirs here

    def update(self, batch: SequenceBatch) -> Metrics:
        """Learn from a batch: one backward pass and one optimiser step."""
        with self.pieces.watched():
            loss, metrics = self.loss(batch)
            step = self.optimizer.step(loss)
        self.agent.behavior.update_slow_critic()
        return metrics | step

    def loss(self, batch: SequenceBatch) -> tuple[Tensor, Metrics]:
        """World model, imagination, actor and critic: the sum that is descended."""
        world_model, behavior, pieces = self.agent.world_model, self.agent.behavior, self.pieces

        # Learn the world: encode what was seen, predict what came.
        with self.clock.stage("world_model"), self._precision(batch):
            world = pieces.observe(batch, pieces.row)

        # Imagine on from some of what was seen, following the policy.
        with self.clock.stage("imagination"), self._precision(batch):
            starts = self._starts(world.latent.deter)
            latent = world_model.code(_select(world.latent, starts))
            memory = world_model.select(world, starts, self.algo.horizon)
            with world_model.backbone.merged():
                imagined = imagine(
                    world_model, behavior.sample, latent, memory, self.algo.horizon, pieces.dream
                )

        # Learn to act from the dream, and to judge from the dream and from what really happened.
        with self.clock.stage("behavior"), self._precision(batch):
            dreamt = pieces.judge(imagined)
            rows = Replayed(
                world_model.feature(world.latent),
                batch.reward[:, 1:],
                batch.action[:, 1:],
                batch.is_first[:, 1:],
                batch.terminated[:, 1:],
            )
            replayed = pieces.judge_replay(rows, starts, dreamt.returns[:, 0].view_as(starts))

        metrics = world.metrics | dreamt.metrics | replayed.metrics
        return world.loss + dreamt.loss + replayed.loss, metrics

    def _precision(self, batch: SequenceBatch) -> torch.autocast:
        """Matrix products in bfloat16, if they are to be; what networks say is in full precision.

        A context for each stage: leaving it forgets the weights that were rounded within. Those of
        imagination carry no gradient, and would be taken by the losses behind it.
        """
        device, enabled = batch.reward.device.type, self.algo.precision == "bf16"
        return torch.autocast(device, torch.bfloat16, enabled=enabled)

    def _starts(self, deter: Tensor) -> Tensor:
        """The rows of each sequence that imagination starts from: (B, n), distinct, in order."""
        batch, time = deter.shape[:2]
        count = time if self.algo.imag_starts is None else self.algo.imag_starts
        if count == time:
            return torch.arange(time, device=deter.device).expand(batch, time)
        return torch.rand(batch, time, device=deter.device).topk(count).indices.sort().values


def _select(latent: Latent, starts: Tensor) -> Latent:
    """The latents at (b, starts[b, i]), as N = B * n rows without gradient."""
    row = torch.arange(starts.shape[0], device=starts.device).unsqueeze(1)
    deter, stoch = (part.detach()[row, starts].flatten(0, 1) for part in latent)
    return Latent(deter, stoch)
