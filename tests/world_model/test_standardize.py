"""Statistics of the standardizer, and that an agent does not depend on the units of its vectors."""

import io

import numpy as np
import pytest
import torch

from llmdreamer.agent.agent import Agent
from llmdreamer.nn.layers import VectorEncoder
from llmdreamer.types import EnvSpec
from llmdreamer.world_model.standardize import Standardizer

SHAPES = {"a": (3,), "b": (2,)}
UNITS = np.array([1e-3, 1e3, 1.0, 1e6, 1e-6], np.float32)


def steps(count, seed=0, unit=1.0):
    """Normal numbers around one, in `unit`."""
    numbers = np.random.default_rng(seed).normal(1.0, 2.0, (count, 5))
    numbers = numbers.astype(np.float32) * unit
    return {"a": numbers[:, :3], "b": numbers[:, 3:]}


def tensors(step):
    return {key: torch.from_numpy(value) for key, value in step.items()}


def filled(*batches):
    standardizer = Standardizer(SHAPES, ["a", "b"])
    for batch in batches:
        standardizer.update([batch])
    return standardizer


def test_statistics_of_several_updates_match_numpy():
    parts = [steps(count, seed, UNITS) for seed, count in enumerate((1, 0, 5, 2, 300))]
    standardizer = Standardizer(SHAPES, ["a", "b", "a"])
    standardizer.update(parts[:3])
    standardizer.update(parts[3:])
    numbers = np.concatenate([np.concatenate([p["a"], p["b"]], 1) for p in parts])
    numbers = numbers.astype(np.float64)
    assert standardizer.count.item() == 308
    np.testing.assert_allclose(standardizer.mean, numbers.mean(0), rtol=1e-12)
    np.testing.assert_allclose(standardizer.squared_deviation / 308, numbers.var(0), rtol=1e-12)


def test_encoding_is_linear_near_the_mean_and_logarithmic_beyond():
    standardizer = Standardizer({"a": (1,)}, ["a"])
    standardizer.update([{"a": np.array([[-1.0], [1.0]], np.float32) * 4 + 10}])  # 10 +- 4
    seen = {"a": torch.tensor([[10.0], [14.0], [-2.0], [10 + 4 * 3e3]])}
    expected = 3 * np.arcsinh(np.array([[0.0], [1.0], [-3.0], [3e3]]) / 3)
    np.testing.assert_allclose(standardizer(seen, 1)["a"], expected, rtol=1e-5)


def test_embedding_does_not_depend_on_units():
    batch, scaled = steps(200), steps(200, unit=UNITS)
    encoder = VectorEncoder(SHAPES, ["b", "a"], 16, 1, bins=41)
    plain = encoder(filled(batch)(tensors(batch), 1))
    torch.testing.assert_close(encoder(filled(scaled)(tensors(scaled), 1)), plain)


def test_decode_inverts_the_encoding():
    scaled = steps(50, unit=UNITS)
    standardizer = filled(steps(200, 1, UNITS))
    decoded = standardizer.decode(standardizer(tensors(scaled), 1))
    for key, value in scaled.items():
        unit = torch.from_numpy(UNITS[:3] if key == "a" else UNITS[3:])
        torch.testing.assert_close(decoded[key] / unit, torch.from_numpy(value) / unit)


def test_constant_numbers_encode_as_zero():
    constant = {"a": np.full((9, 3), 0.1, np.float32), "b": np.zeros((9, 2), np.float32)}
    encoded = filled(constant)(tensors(constant), 1)
    assert all(value.abs().max() < 1e-6 for value in encoded.values())
    unseen = Standardizer(SHAPES, ["a", "b"])
    torch.testing.assert_close(unseen(tensors(constant), 1)["b"], torch.zeros(9, 2))


def test_disabled_standardizer_is_symlog_without_state():
    standardizer = Standardizer(SHAPES, ["a", "b"], enabled=False)
    batch = {"a": torch.tensor([[0.0, torch.e - 1, 1 - torch.e]]), "b": torch.zeros(1, 2)}
    standardizer.update([steps(3)])
    assert not standardizer.state_dict()
    encoded = standardizer(batch, 1)
    torch.testing.assert_close(encoded["a"], torch.tensor([[0.0, 1.0, -1.0]]))
    torch.testing.assert_close(standardizer.decode(encoded)["a"], batch["a"])


def test_images_and_texts_pass_through():
    standardizer = Standardizer({"a": (3,), "image": (4, 4, 3)}, ["a"])
    image = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    assert standardizer({"a": torch.zeros(2, 3), "image": image}, 1)["image"] is image


@pytest.mark.parametrize("bins", [0, 41])
def test_resumed_agents_embed_alike_in_any_units(compose, bins):
    config = compose(
        "backbone=gru", "algo.world_model.standardize=true", f"algo.world_model.vector_bins={bins}"
    )
    spec = EnvSpec({"state": (5,)}, 2, True)
    outputs = []
    for unit in (1.0, UNITS):
        batch = steps(64, unit=unit)
        state = {"state": np.concatenate([batch["a"], batch["b"]], 1)}
        torch.manual_seed(0)
        agent = Agent(config, spec)
        agent.world_model.standardizer.update([state])
        file = io.BytesIO()
        torch.save(agent.state_dict(), file)
        file.seek(0)
        resumed = Agent(config, spec)
        resumed.load_state_dict(torch.load(file, weights_only=True))
        outputs.append(resumed.world_model.embed(tensors(state), 1))
    torch.testing.assert_close(*outputs)
