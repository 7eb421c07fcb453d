"""Training draws from its own stream: an environment that seeds the global generators changes nothing."""

import shutil
from dataclasses import replace

import pytest
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from reseeding import seed_all
from tiny_run import TINY, differing_paths, metric_records, saved_trainer

from llmdreamer.training.loop import train
from llmdreamer.utils.noise import Noise

CPU = torch.device("cpu")
SAMPLED = ("eval.every=24", "eval.greedy=false", "env.num_envs=2", "eval.episodes=1")
FEW = ("algo.total_steps=32", "eval.final_episodes=1", "eval.open_loop_windows=4")
KINDS = {
    "gpt2": ("backbone=gpt2",),
    "dropout": ("backbone=gpt2", "peft=true", "lora.dropout=0.2"),
    "coupled": ("backbone=gru", "posterior=coupled"),
    "processes": ("backbone=gru", "env.processes=true", "eval.open_loop_windows=0", "eval.every=0"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_environment_that_seeds_global_generators_changes_nothing(
    compose, tmp_path, untracked, kind
):
    results = []
    for seeds in ("false", "true"):
        folder = tmp_path / seeds
        folder.mkdir()
        environment = ("env=gym", "env.id=reseeding:Reseeding-v0", f"+env.kwargs.seeds={seeds}")
        config = compose(*TINY, *SAMPLED, *FEW, *environment, *KINDS[kind])
        objective = train(config, folder).objective
        results.append((saved_trainer(folder), metric_records(folder), objective))
    plain, seeding = results
    assert plain[0]["optimizer"]["updates"] > 0
    assert differing_paths(plain[0], seeding[0]) == []
    assert plain[1:] == seeding[1:]


def test_run_with_a_seeding_environment_resumes_bit_for_bit(
    compose, tmp_path, untracked, monkeypatch
):
    step = CartPoleEnv.step

    def seeding_step(self, action):
        seed_all()
        return step(self, action)

    config = compose(*TINY, *SAMPLED, *FEW, "backbone=gpt2", "checkpoint.every=24")
    plain, whole, killed = (tmp_path / name for name in ("plain", "whole", "killed"))
    plain.mkdir()
    whole.mkdir()
    train(config, plain)
    monkeypatch.setattr(CartPoleEnv, "step", seeding_step)
    train(config, whole)
    shutil.copytree(whole, killed)
    max((killed / "checkpoints").iterdir()).unlink()
    assert saved_trainer(killed)["collector"]["policy_step"] == 24
    train(replace(config, resume=str(killed)), killed)
    assert differing_paths(saved_trainer(whole), saved_trainer(killed)) == []
    assert differing_paths(saved_trainer(whole), saved_trainer(plain)) == []
    assert metric_records(killed) == metric_records(whole) == metric_records(plain)


def test_noise_leaves_the_global_stream_unbroken():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    first, noise = torch.rand(2), Noise(7, CPU)
    with noise.installed():
        torch.rand(3)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)


def test_noise_continues_from_its_saved_state():
    torch.manual_seed(3)
    expected = torch.rand(4)
    noise = Noise(3, CPU)
    with noise.installed():
        first = torch.rand(2)
    saved = noise.state_dict()
    for other in (noise, Noise(9, CPU)):
        other.load_state_dict(saved)
        seed_all()
        with other.installed():
            assert torch.equal(torch.cat([first, torch.rand(2)]), expected)


def test_noise_survives_an_error_inside_its_context():
    noise, before = Noise(3, CPU), torch.get_rng_state()
    with pytest.raises(ValueError, match="inside"), noise.installed():
        torch.rand(1)
        raise ValueError("inside")
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_of_a_gpu_includes_its_generator(monkeypatch):
    generator = torch.Generator()

    def read(device):
        assert device == torch.device("cuda:1")
        return generator.get_state()

    monkeypatch.setattr(torch.cuda, "get_rng_state", read)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, _: generator.set_state(state))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", generator.manual_seed)
    noise = Noise(3, torch.device("cuda:1"))
    saved = noise.state_dict()
    with noise.installed():
        inside = torch.rand(2, generator=generator)
    outside = torch.rand(2, generator=generator)
    assert not torch.equal(inside, outside)
    noise.load_state_dict(saved)
    with noise.installed():
        assert torch.equal(torch.rand(2, generator=generator), inside)
