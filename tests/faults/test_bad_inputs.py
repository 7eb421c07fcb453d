"""What no check of the configuration can know is told before training too: one line, nothing written.

What it can is in tests/cli/test_mistakes.py, with the exit code of the process.
"""

from dataclasses import replace

import pytest
import torch
from smallest import contents
from tiny import TINY

from llmdreamer.errors import ConfigError
from llmdreamer.training.loop import train

GPT2 = ("backbone=gpt2", "algo.world_model.hf_model.seq_len=8")
BAD_INPUTS = [
    (["env=gym", "env.id=CartPol-v1"], ["CartPol-v1", "did you mean", "CartPole-v1"]),
    (["env=gym", "env.id=nowhere:Grid-v0"], ["nowhere"]),
    (["algo.mlp_keys.encoder=[stat]"], ["algo.mlp_keys", "stat", "state"]),
    (["algo.mlp_keys.encoder=[]", "algo.cnn_keys.encoder=[image]"], ["image", "state"]),
    (["algo.world_model.recurrent_model.recurrent_state_size=48"], ["=48", "256 wide"]),
    (["replay.capacity=1000000000000000"], ["lower replay.capacity", "are free"]),
    (["tracking.uri=./mlruns"], ["./mlruns", "sqlite:///"]),
    (["tracking.uri=ftp://host/x"], ["ftp://host/x"]),
    ([*GPT2, "pretrained=true", "backbone.path=./none"], ["backbone.path=./none", "no such directory"]),
    ([*GPT2, "model=S", "pretrained=true"], ["hub is unreachable", "pretrained=false"]),
    ([*GPT2, "peft=true", "lora.target_modules=[q]"], ["lora.target_modules", "c_attn"]),
    (["backbone=hf", "backbone.model_type=gtp2"], ["gtp2", "did you mean 'gpt2'"]),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "facts"), BAD_INPUTS, ids=lambda value: value[-1][:40])
def test_a_bad_input_is_one_line_and_nothing_is_written(
    compose, tmp_path, monkeypatch, untracked, overrides, facts
):
    monkeypatch.chdir(tmp_path)
    config = compose(*TINY, *overrides)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    with pytest.raises(ConfigError) as error:
        train(config, run_dir)
    line = str(error.value)
    assert [fact for fact in facts if fact not in line] == [], line
    assert "\n" not in line and error.value.exit_code == 2
    left = {name.split("/")[0] for name in contents(tmp_path / "run")}
    assert left <= {"replay"}  # its description, where what is wrong is its room


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(compose, tmp_path, untracked):
    with pytest.raises(
        ConfigError, match="device=cuda: this machine has 0 CUDA devices; device=cpu"
    ):
        train(compose(*TINY, "device=cuda"), tmp_path)
    assert contents(tmp_path) == {}


def test_a_checkpoint_of_another_shape_is_told_with_both(copy, untracked):
    config, folder = copy
    before = contents(folder)
    other = replace(config, resume=str(folder), algo=replace(config.algo, dense_units=24))
    with pytest.raises(
        ConfigError, match=r"of another size: \S+ is \(.*16.*\) there, \(.*24.*\) in"
    ):
        train(other, folder)
    assert contents(folder) == before
