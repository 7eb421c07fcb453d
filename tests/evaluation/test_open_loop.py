"""What is imagined without looking is what looking on would have remembered, and errors are true."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from llmdreamer.agent.agent import Agent
from llmdreamer.envs import make_vector
from llmdreamer.evaluation.open_loop import measure, roll_out
from llmdreamer.evaluation.open_loop_record import (
    Errors,
    Example,
    OpenLoop,
    continue_accuracy,
    image_error,
    load,
    reward_error,
    vector_error,
)
from llmdreamer.evaluation.windows import NUM_ENVS, evaluate_open_loop, fresh_windows
from llmdreamer.nn.functional import mode_one_hot
from llmdreamer.types import EnvSpec, SequenceBatch
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.noise import Noise
from llmdreamer.utils.seeds import SeedOffset
from llmdreamer.world_model import model

torch.set_num_threads(1)
B, C, H, N = 3, 4, 5, 2
ARMS = {
    "gpt2": ["backbone=gpt2"],
    "smollm2": ["backbone=smollm2"],
    "mamba": ["backbone=mamba"],
    "mamba2": ["backbone=mamba2"],
    "gru": ["backbone=gru"],
    "reference": ["backbone=gru", "posterior=coupled"],
}
SPEC = EnvSpec({"state": (3,)}, 2, True)


def make_batch(spec: EnvSpec = SPEC, seed: int = 0) -> SequenceBatch:
    generator = torch.Generator().manual_seed(seed)
    rows, flags = (B, C + H + 1), torch.zeros(B, C + H + 1, dtype=torch.bool)
    observations = {
        key: torch.randint(256, (*rows, *shape), generator=generator, dtype=torch.uint8)
        if spec.kind(key) == "image"
        else torch.randn(*rows, *shape, generator=generator)
        for key, shape in spec.observations.items()
    }
    action = F.one_hot(torch.randint(2, rows, generator=generator), 2).float()
    reward = torch.randn(rows, generator=generator)
    return SequenceBatch(observations, action, reward, flags.clone(), flags.clone())


class Prescribed(nn.Module):
    """A prior that foresees what the posterior will find, step by step."""

    def __init__(self, prior: nn.Module, stoch: torch.Tensor) -> None:
        super().__init__()
        self.real, self.rows = prior, iter(stoch.unbind(1))

    def forward(self, deter: torch.Tensor) -> torch.Tensor:
        return self.real(deter)

    def sample(self, deter: torch.Tensor) -> torch.Tensor:
        return next(self.rows).argmax(-1, keepdim=True).repeat_interleave(N, 0)


@pytest.mark.parametrize("arm", ARMS)
def test_imagining_from_given_posteriors_equals_observing(arm, compose, monkeypatch):
    """The law that ties the two: other than by its latents, imagination differs in nothing."""
    torch.manual_seed(0)
    context = "algo.world_model.hf_model.seq_len=4"  # shorter than the window
    world = Agent(compose(*ARMS[arm], context), SPEC).eval().world_model
    monkeypatch.setattr(model, "sample_one_hot", mode_one_hot)
    batch = make_batch()
    batch.is_first[1, 3] = True  # an episode begins while it is looked at
    with torch.no_grad():
        _, observed = world.observe(batch)
    world.prior = Prescribed(world.prior, observed.latent.stoch[:, C:].detach())
    rolled = roll_out(world, batch, C, N)
    assert rolled.imagined.shape[:3] == (B, N, H)
    torch.testing.assert_close(rolled.posterior, world.feature(observed.latent))
    for sample in range(N):
        torch.testing.assert_close(
            rolled.imagined[:, sample], rolled.posterior[:, C:], rtol=1e-4, atol=2e-5
        )


@pytest.fixture
def world(compose):
    torch.manual_seed(0)
    return Agent(compose("backbone=gru"), SPEC).eval().world_model


def test_roll_out_ignores_observations_after_the_context(world):
    rolled = []
    for seed in (1, 2):
        batch = make_batch()
        batch.observations["state"][:, C + 1 :] = float(seed)
        torch.manual_seed(0)
        rolled.append(roll_out(world, batch, C, N).imagined)
    # The same draws: the posterior draws for all rows before the prior does for any.
    torch.testing.assert_close(*rolled)


def test_roll_out_uses_each_action_one_step_later(world):
    batch, other = make_batch(), make_batch()
    other.action[:, C + 2] = 1 - other.action[:, C + 2]
    one, two = [], []
    for rolled, of in ((one, batch), (two, other)):
        torch.manual_seed(0)
        rolled.append(roll_out(world, of, C, N).imagined)
    # Row C + 2 is imagined step 2 of 1..H, its action is felt from step 3 on.
    torch.testing.assert_close(one[0][:, :, :2], two[0][:, :, :2])
    assert not torch.allclose(one[0][:, :, 2], two[0][:, :, 2])


def test_measure_stops_at_the_end_of_an_episode(world):
    batch = make_batch()
    batch.terminated[0, C + 2] = True
    batch.is_first[0, C + 3] = True  # of the first piece only two steps are left
    found = measure(world, batch, C, N)
    assert list(found.windows) == [3, 3, 2, 2, 2]
    right = found.errors["continue"].repeated  # it foretells that episodes go on
    assert list(right) == pytest.approx([1, 2 / 3, 1, 1, 1])


def test_baseline_repeats_the_last_observation(world):
    batch = make_batch()
    found = measure(world, batch, C, N)
    seen = batch.observations["state"].numpy()
    sd = seen.reshape(-1, 3).std(0)
    for h in range(H):
        wrong = (seen[:, C] - seen[:, C + 1 + h]) / sd
        assert found.errors["vector/state"].repeated[h] == pytest.approx(
            np.sqrt((wrong**2).mean()), rel=1e-5
        )
    reward = batch.reward.numpy()
    expected = np.abs(reward[:, [C]] - reward[:, C + 1 :]).mean(0)
    np.testing.assert_allclose(found.errors["reward"].repeated, expected, rtol=1e-5)


def test_example_is_the_window_with_the_longest_episode(world):
    batch = make_batch()
    batch.is_first[0, C + 1] = True
    example = measure(world, batch, C, N).examples["vector/state"]
    np.testing.assert_array_equal(example.observed, batch.observations["state"][1, 1:].numpy())
    assert example.imagined.shape == (N, H, 3) and example.posterior.shape == (C + H, 3)


def test_images_are_predicted_in_their_own_range(compose):
    spec = EnvSpec({"image": (16, 16, 3)}, 2, True)
    keys = ["algo.mlp_keys.encoder=[]", "algo.cnn_keys.encoder=[image]", "env.image_size=16"]
    torch.manual_seed(0)
    world = Agent(compose("backbone=gru", *keys), spec).eval().world_model
    batch = make_batch(spec)
    found = measure(world, batch, C, N)
    pixels = batch.observations["image"].numpy() / 255
    expected = ((pixels[:, C] - pixels[:, C + 1]) ** 2).mean()
    assert found.errors["image/image"].repeated[0] == pytest.approx(expected, rel=1e-4)
    example = found.examples["image/image"]
    assert example.observed.dtype == np.uint8 and example.observed.shape == (C + H, 16, 16, 3)
    np.testing.assert_array_equal(example.observed, batch.observations["image"][0, 1:].numpy())
    assert set(found.metrics()) >= {"open_loop/image_error", "open_loop/image_error_repeated"}


def test_vector_error_is_in_deviations_without_constant_components():
    predicted = np.array([[[3.0, 10.0, 5.0]]])
    observed = np.array([[[1.0, 10.0, 9.0]]])
    # 2 of sd 2, 0 of sd 1; the third never varies: sqrt((1 + 0) / 2)
    assert vector_error(predicted, observed, np.array([2.0, 1.0, 0.0])) == pytest.approx(0.5**0.5)
    assert np.isnan(vector_error(predicted, observed, np.zeros(3)))
    assert np.isnan(vector_error(predicted[:0], observed[:0], np.ones(3)))


def test_errors_of_images_rewards_and_ends_match_hand_computation():
    assert image_error(np.array([0.0, 1.0]), np.array([0.5, 1.0])) == 0.125
    assert reward_error(np.array([1.0, -1.0]), np.array([0.0, 1.0])) == 1.5
    probability = np.array([0.9, 0.2, 0.6, 0.4])
    assert continue_accuracy(probability, np.array([False, True, True, False])) == 0.5


def curves(*values: float) -> Errors:
    return Errors(np.array(values), 2 * np.array(values), 3 * np.array(values))


def test_metrics_are_means_over_the_horizon_without_nan():
    nan = float("nan")
    errors = {
        "vector/a": curves(1.0, 3.0),
        "vector/b": curves(5.0, nan),
        "reward": curves(nan, nan),
    }
    assert OpenLoop(1, np.array([2, 1]), errors).metrics() == {
        "open_loop/vector_error": 3.0,
        "open_loop/vector_error_repeated": 6.0,
    }


def test_saved_open_loop_is_loaded_and_other_files_are_refused(tmp_path):
    example = Example(np.zeros((3, 2)), np.ones((3, 2)), np.ones((4, 2, 2)))
    saved = OpenLoop(1, np.array([2, 1]), {"reward": curves(1, 2)}, {"vector/a/b": example})
    found = load(saved.save(tmp_path / "x.npz"))
    assert found.context == 1 and found.horizon == 2
    np.testing.assert_array_equal(found.errors["reward"].posterior, [3, 6])
    np.testing.assert_array_equal(found.examples["vector/a/b"].imagined, example.imagined)
    (tmp_path / "y.npz").write_text("no")
    with pytest.raises(ConfigError, match="open-loop"):
        load(tmp_path / "y.npz")


def test_fresh_windows_repeat_with_the_same_seed(compose):
    config = compose(
        "backbone=gru", "algo.per_rank_sequence_length=8", "algo.horizon=3", "algo.imag_starts=2"
    )
    envs = make_vector(config.env, 1, 0)
    agent = Agent(config, envs.spec)
    batches = []
    for _ in range(2):
        batches.append(fresh_windows(agent, config, 6, 8, 0, Noise(0, agent.device)))
    assert agent.training
    assert batches[0].action.shape == (6, 9, 2)
    torch.testing.assert_close(batches[0].observations["state"], batches[1].observations["state"])
    assert len(batches[0].observations["state"].flatten(0, 1).unique(dim=0)) > NUM_ENVS
    # Neither training nor any evaluation began where these episodes begin.
    first_states = batches[0].observations["state"][batches[0].is_first]
    assert len(first_states)
    for other_seed in (
        0,
        SeedOffset.EVALUATION,
        SeedOffset.FINAL,
        SeedOffset.FINAL + SeedOffset.EVALUATION,
    ):
        envs = make_vector(config.env, 32, other_seed)
        known = torch.from_numpy(envs.reset().observations["state"])
        envs.close()
        assert not (first_states[:, None] == known).all(-1).any()
    found = evaluate_open_loop(agent, config, 4, 0)
    assert (found.context, found.horizon) == (5, 3) and found.windows[0] <= 4
