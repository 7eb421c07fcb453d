"""Predicts recorded experience open loop, from actions without observations, and measures the error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmdreamer.evaluation import open_loop_record as record
from llmdreamer.evaluation.open_loop_record import CONTINUE, REWARD, Errors, Example, OpenLoop
from llmdreamer.types import SequenceBatch
from llmdreamer.world_model.model import WorldModel

MAX_IMAGE_EXAMPLES = 3  # imagined trajectories of images that are kept


@dataclass(frozen=True)
class RollOut:
    """Features of the same steps, with and without observations."""

    posterior: Tensor  # (B, C + H, F), without the batch's context step
    imagined: Tensor  # (B, n, H, F), the last H steps


@torch.no_grad()
def roll_out(world: WorldModel, batch: SequenceBatch, context: int, samples: int) -> RollOut:
    """Observe C steps, then predict the other H from the prior and the recorded actions.

    The prediction does not know where an episode ended.

    Args:
        batch: B windows of C + H steps behind a context step.
        context: C, >= 1.
        samples: n trajectories from the latent of each window's last observed step.
    """
    _, observed = world.observe(batch)
    posterior = world.feature(observed.latent)
    last = torch.full((len(posterior), samples), context - 1, device=posterior.device)
    latent, cache = world.start_imagination(observed, last)
    features = []
    for t in range(context, posterior.shape[1]):  # the action of step t leads to step t + 1
        action = batch.action[:, t].repeat_interleave(samples, 0)
        latent, cache = world.transition(latent, action, cache)
        features.append(world.feature(latent))
    return RollOut(posterior, torch.stack(features, 1).unflatten(0, (len(posterior), samples)))


@torch.no_grad()
def measure(world: WorldModel, batch: SequenceBatch, context: int, samples: int) -> OpenLoop:
    """Return errors by horizon, and the window with the longest episode as an example.

    Vector errors are in units of the standard deviation over the batch.
    """
    rolled = roll_out(world, batch, context, samples)
    horizon = rolled.imagined.shape[2]
    truth = _truth(world, batch)
    deviation = {
        key: value.std((0, 1)) for key, value in truth.items() if key.startswith("vector/")
    }
    # Steps behind an episode's end belong to another episode, which cannot be predicted.
    valid = ~batch.is_first[:, context + 1 :].cpu().numpy().astype(bool)
    valid = np.logical_and.accumulate(valid, 1)
    curves: dict[str, list[tuple[float, float, float]]] = {key: [] for key in truth}
    # One step at a time: all images together may not fit into memory.
    for h in range(horizon):
        counted = valid[:, h]
        imagined = _predicted(world, rolled.imagined[:, :, h])
        posterior = _predicted(world, rolled.posterior[:, context + h].unsqueeze(1))
        for key, value in truth.items():
            predictions = (imagined[key], value[:, context, None], posterior[key])
            target = value[:, context + 1 + h, None]
            scores = [
                _error(key, prediction[counted], target[counted], deviation.get(key))
                for prediction in predictions
            ]
            curves[key].append((scores[0], scores[1], scores[2]))
    errors = {key: Errors(*np.array(curve).T) for key, curve in curves.items()}
    longest = int(valid.sum(1).argmax())
    examples = _examples(
        world, rolled, {key: value[longest] for key, value in truth.items()}, longest
    )
    return OpenLoop(context, valid.sum(0), errors, examples)


def _truth(world: WorldModel, batch: SequenceBatch) -> dict[str, NDArray[Any]]:
    """Return the targets by the names of UNITS, each (B, C + H + 1, ...)."""
    decoder = world.decoder
    targets = {f"vector/{key}": batch.observations[key].flatten(2) for key in decoder.vectors}
    targets |= {f"image/{key}": batch.observations[key].float() / 255 for key in decoder.images}
    # The repeating baseline of `continue` says that the episode goes on, as at the window's start.
    targets |= {REWARD: batch.reward, CONTINUE: (~batch.terminated).float()}
    return {key: value.cpu().numpy() for key, value in targets.items()}


def _predicted(world: WorldModel, features: Tensor) -> dict[str, NDArray[Any]]:
    """Predict the targets from features (..., F): each (..., *shape); `continue` as a probability."""
    vectors, images = world.decoder.predict(features)
    vectors = world.standardizer.decode(vectors)
    reward, discount = world.predict(features)
    predictions = {f"vector/{key}": value for key, value in vectors.items()}
    predictions |= {f"image/{key}": value for key, value in images.items()}
    predictions |= {REWARD: reward, CONTINUE: discount / world.continues.gamma}
    return {key: value.float().cpu().numpy() for key, value in predictions.items()}


def _error(
    key: str, predicted: NDArray[Any], target: NDArray[Any], deviation: NDArray[Any] | None
) -> float:
    if deviation is not None:
        return record.vector_error(predicted, target, deviation)
    if key == REWARD:
        return record.reward_error(predicted, target)
    if key == CONTINUE:
        return record.continue_accuracy(predicted, target < 0.5)
    return record.image_error(predicted, target)


def _examples(
    world: WorldModel, rolled: RollOut, truth: dict[str, NDArray[Any]], window: int
) -> dict[str, Example]:
    posterior = _predicted(world, rolled.posterior[window])
    imagined = _predicted(world, rolled.imagined[window])
    examples = {}
    for key in truth:
        if key in (REWARD, CONTINUE):
            continue
        arrays = (truth[key][1:], posterior[key], imagined[key])
        if key.startswith("image/"):
            arrays = (arrays[0], arrays[1], arrays[2][:MAX_IMAGE_EXAMPLES])
            arrays = tuple((255 * pixels).round().astype(np.uint8) for pixels in arrays)  # type: ignore
        examples[key] = Example(*arrays)
    return examples
