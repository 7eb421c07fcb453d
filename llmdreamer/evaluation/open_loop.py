"""Rolls the world model on without observations, by the actions that were taken, and measures it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmdreamer.evaluation import open_loop_record as openloop
from llmdreamer.evaluation.open_loop_record import CONTINUE, REWARD, Errors, Example, OpenLoop
from llmdreamer.types import SequenceBatch
from llmdreamer.world_model.model import WorldModel

IMAGES = 3  # imagined examples of an image that are kept


@dataclass(frozen=True)
class RollOut:
    """Features of the same rows, with and without looking."""

    seen: Tensor  # (B, C + H, F), of the rows behind the batch's context row
    imagined: Tensor  # (B, n, H, F), of the last H of them


@torch.no_grad()
def roll_out(world: WorldModel, batch: SequenceBatch, context: int, samples: int) -> RollOut:
    """Observe C rows, then imagine the rest from the prior alone.

    What is imagined knows the actions that were taken, not that an episode ended.

    Args:
        batch: B pieces of C + H rows behind a context row.
        context: C, >= 1.
        samples: n trajectories from the latent of each piece's last observed row.
    """
    _, observed = world.observe(batch)
    seen = world.feature(observed.latent)
    last = torch.full((len(seen), samples), context - 1, device=seen.device)
    latent, cache = world.start_imagination(observed, last)
    features = []
    for t in range(context, seen.shape[1]):  # row t's action leads to row t + 1
        action = batch.action[:, t].repeat_interleave(samples, 0)
        latent, cache = world.transition(latent, action, cache)
        features.append(world.feature(latent))
    return RollOut(seen, torch.stack(features, 1).unflatten(0, (len(seen), samples)))


@torch.no_grad()
def measure(world: WorldModel, batch: SequenceBatch, context: int, samples: int) -> OpenLoop:
    """Errors by horizon of a roll-out, and one piece as an example: one whose episode goes on longest.

    Observations are taken from the batch, as are the standard deviations that are the unit of vectors.
    """
    rolled = roll_out(world, batch, context, samples)
    horizon = rolled.imagined.shape[2]
    truth = _truth(world, batch)
    deviation = {key: rows.std((0, 1)) for key, rows in truth.items() if key.startswith("vector/")}
    # What follows an episode's end is of another, which nobody could foretell.
    valid = ~batch.is_first[:, context + 1 :].cpu().numpy().astype(bool)
    valid = np.logical_and.accumulate(valid, 1)
    curves: dict[str, list[tuple[float, float, float]]] = {key: [] for key in truth}
    # A step at a time: all pictures together may not fit.
    for h in range(horizon):
        live = valid[:, h]
        imagined = _predicted(world, rolled.imagined[:, :, h])
        posterior = _predicted(world, rolled.seen[:, context + h].unsqueeze(1))
        for key, rows in truth.items():
            said = (imagined[key], rows[:, context, None], posterior[key])
            told = rows[:, context + 1 + h, None]
            of = [_error(key, part[live], told[live], deviation.get(key)) for part in said]
            curves[key].append((of[0], of[1], of[2]))
    errors = {key: Errors(*np.array(rows).T) for key, rows in curves.items()}
    longest = int(valid.sum(1).argmax())
    examples = _examples(
        world, rolled, {key: rows[longest] for key, rows in truth.items()}, longest
    )
    return OpenLoop(context, valid.sum(0), errors, examples)


def _truth(world: WorldModel, batch: SequenceBatch) -> dict[str, NDArray[Any]]:
    """What is to be foretold, by the names of `openloop`: (B, C + H + 1, ...) each."""
    decoder = world.decoder
    rows = {f"vector/{key}": batch.observations[key].flatten(2) for key in decoder.vectors}
    rows |= {f"image/{key}": batch.observations[key].float() / 255 for key in decoder.images}
    # That an episode goes on is what is repeated, of continuing: it did where a window begins.
    rows |= {REWARD: batch.reward, CONTINUE: (~batch.terminated).float()}
    return {key: value.cpu().numpy() for key, value in rows.items()}


def _predicted(world: WorldModel, features: Tensor) -> dict[str, NDArray[Any]]:
    """The same of features (..., F): (..., *shape) each; of continuing, the probability."""
    vectors, images = world.decoder.predict(features)
    reward, discount = world.predict(features)
    said = {f"vector/{key}": value for key, value in vectors.items()}
    said |= {f"image/{key}": value for key, value in images.items()}
    said |= {REWARD: reward, CONTINUE: discount / world.continues.gamma}
    return {key: value.float().cpu().numpy() for key, value in said.items()}


def _error(
    key: str, said: NDArray[Any], told: NDArray[Any], deviation: NDArray[Any] | None
) -> float:
    if deviation is not None:
        return openloop.vector_error(said, told, deviation)
    if key == REWARD:
        return openloop.reward_error(said, told)
    if key == CONTINUE:
        return openloop.continue_accuracy(said, told < 0.5)
    return openloop.image_error(said, told)


def _examples(
    world: WorldModel, rolled: RollOut, truth: dict[str, NDArray[Any]], piece: int
) -> dict[str, Example]:
    posterior = _predicted(world, rolled.seen[piece])
    imagined = _predicted(world, rolled.imagined[piece])
    examples = {}
    for key in truth:
        if key in (REWARD, CONTINUE):
            continue
        rows = (truth[key][1:], posterior[key], imagined[key])
        if key.startswith("image/"):
            rows = (rows[0], rows[1], rows[2][:IMAGES])
            rows = tuple((255 * pixels).round().astype(np.uint8) for pixels in rows)  # type: ignore
        examples[key] = Example(*rows)
    return examples
