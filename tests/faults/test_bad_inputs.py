"""Test that invalid input gives one line and exit code 2 before training, and that nothing is written.

There is at least one case for every kind of mistake. More mistakes in the configuration are in
tests/cli/test_mistakes.py, those of studies in tests/sweep/test_study.py.
"""

import json
import logging
import sys
from dataclasses import replace

import pytest
import torch
from refusals import assert_names, refused
from tiny_run import folder_contents
from transformers.utils.logging import enable_propagation

from llmdreamer.training.loop import train
from llmdreamer.utils.errors import ConfigError

GPT2 = ("backbone=gpt2",)
SEQ_LEN = "algo.world_model.hf_model.seq_len"
FALCON = (
    *("backbone=hf", "backbone.model_type=falcon_mamba", "peft=true"),
    "backbone.config={hidden_size:32,num_hidden_layers:1}",
)
OPT = (
    *("backbone=hf", "backbone.model_type=opt"),
    "backbone.config={hidden_size:32,num_hidden_layers:1,num_attention_heads:2,max_position_embeddings:8}",
)
ROOM = ("env=gym", "env.id=lightroom:LightRoom-v0", "algo.mlp_keys.encoder=[state]")
BAD_INPUTS = [
    (["algo.lrr=1"], ["unknown key 'algo.lrr'", "did you mean 'algo.optimizer.lr'"]),
    (["algo.per_rank_batch_size=-1"], ["algo.per_rank_batch_size=-1", "must be >= 1"]),
    (["algo.per_rank_batch_size=big"], ["algo.per_rank_batch_size='big'", "an integer"]),
    (["algo.optimizer.lr=nan"], ["algo.optimizer.lr=nan", "finite", "> 0"]),
    (["model=Q"], ["model=Q", "choose from L, M, S, XS"]),
    (["backbone=gtp2"], ["backbone=gtp2", "choose from block_gru, gpt2, gru", "did you mean 'gpt2'"]),
    (["backbone=qwen3", "model=S"], ["qwen3 has no size S", "choose from XS, M, L"]),
    ([*GPT2, "model=S", "pretrained=true"], ["hub is unreachable", "pretrained=false"]),
    ([*GPT2, "pretrained=true", "backbone.path=./none"], ["backbone.path=./none", "no such directory"]),
    (["backbone=hf", "backbone.model_type=gtp2"], ["gtp2", "did you mean 'gpt2'"]),
    ([*GPT2, "peft=true", "lora.target_modules=[q]"], ["lora.target_modules", "c_attn"]),
    ([*OPT, f"{SEQ_LEN}=32"], ["seq_len=32", "this opt has 8 positions"]),
    (["algo.world_model.recurrent_model.recurrent_state_size=48"], ["=48", "256 wide"]),
    (["replay.capacity=8"], ["replay.capacity=8", "sequence of 9 "]),
    (["algo.total_steps=16"], ["nothing would train", "learning_starts=16", "total_steps=16"]),
    (["algo.total_steps=8", "algo.learning_starts=1"], ["nothing would train", "total_steps=8", "of 9 "]),
    (["env=gym", "env.id=CartPol-v1"], ["CartPol-v1", "did you mean", "CartPole-v1"]),
    (["env=gym", "env.id=nowhere:Grid-v0"], ["nowhere"]),
    ([*ROOM, "+env.kwargs.show=[list]"], ["observation space Sequence", "supported: Box"]),
    ([*ROOM, "+env.kwargs.show=[state]", "+env.kwargs.act=list"], ["action space Sequence", "supported"]),
    (["algo.mlp_keys.encoder=[stat]"], ["algo.mlp_keys", "stat", "state"]),
    (["algo.mlp_keys.encoder=[]", "algo.cnn_keys.encoder=[image]"], ["image", "state"]),
    (["precision=fp8"], ["precision=fp8", "choose from fp32, bf16"]),
    (["output_root=/proc/nowhere"], ["/proc/nowhere"]),
    (["algo.dense_units=1000000000000000"], ["memory for this agent"]),
    (["run_name=../x"], ["run_name='../x'", "characters"]),
    (["replay.capacity=1000000000000000"], ["lower replay.capacity", "are free"]),
    (["tracking.uri=./mlruns"], ["./mlruns", "sqlite:///"]),
    (["tracking.uri=ftp://host/x"], ["ftp://host/x"]),
    (["objective=eval/retrun"], ["no run logs eval/retrun", "did you mean 'eval/return'"]),
    (["sweeps=smoke"], ["sweeps=smoke is a sweep", "python run.py -m sweeps=smoke"]),
    (["sweeps=a,b"], ["one sweep specification at a time"]),
    (["resume=nowhere"], ["missing checkpoint", "resume=nowhere"]),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "facts"), BAD_INPUTS, ids=lambda value: value[-1][:40])
def test_bad_input_fails_in_one_line_and_writes_nothing(command, tmp_path, overrides, facts):
    code, out, err = command(*overrides)
    assert_names(err, *facts)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert paths_below(tmp_path) == set()


def test_lora_modules_without_gradient_exit_2(command, tmp_path):
    # As with CI=1: transformers' log lines would also appear in our own log on stdout.
    enable_propagation()
    code, out, err = command(*FALCON, "lora.target_modules=[in_proj,dt_proj]")
    assert (code, out) == (2, "")
    # The lines before it are transformers' warning about its slow kernel.
    assert_names(err.splitlines()[-1], "lora.target_modules", "'dt_proj'", "gradient")
    assert paths_below(tmp_path) == set()
    assert not logging.getLogger("transformers").propagate


def paths_below(folder):
    """Return the relative paths of everything below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_run_name_of_a_refused_run_can_be_used(command, tmp_path):
    assert command("run_name=run", "algo.mlp_keys.encoder=[stat]")[0] == 2
    assert command("run_name=run", "algo.total_steps=18")[0] == 0


def test_refused_run_keeps_existing_files(command, tmp_path):
    notes = tmp_path / "outputs" / "run" / "replay" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    code, _, err = command("run_name=run")
    assert code == 2 and err.count("\n") == 1
    assert_names(err, str(notes.parent), "not empty")
    assert folder_contents(tmp_path) == {"outputs/run/replay/notes.txt": b"mine"}


def test_missing_extra_error_names_the_install_command(command, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if f"{name}.".startswith("minigrid.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "llmdreamer.envs.minigrid", raising=False)
    monkeypatch.setitem(sys.modules, "minigrid", None)
    code, _, err = command("env=minigrid")
    assert (code, err.count("\n")) == (2, 1)
    assert_names(err, "env=minigrid", "pip install 'llmdreamer[minigrid]'")
    assert paths_below(tmp_path) == set()


def test_backbone_with_remote_code_is_refused_and_trust_is_named(command, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    auto = {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": auto}))
    before = folder_contents(tmp_path)
    code, _, err = command("backbone=hf", "pretrained=true", f"backbone.path={folder}")
    assert (code, err.count("\n")) == (2, 1)
    assert_names(err, f"backbone.path={folder}", "backbone.factory", "trust=")
    assert folder_contents(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_missing_device_exits_2_and_suggests_cpu(command, tmp_path):
    code, _, err = command("device=cuda")
    assert (code, err.count("\n")) == (2, 1)
    assert_names(err, "device=cuda", "0 CUDA devices", "device=cpu")
    assert paths_below(tmp_path) == set()


@pytest.mark.parametrize(
    ("fault", "facts"),
    [
        ("raise", ["OSError: a fuse is blown"]),
        ("exit", ["SystemExit: 0"]),
        ("nan", ["'state'", "NaN"]),
        ("shape", ["'state'", "(3,)", "(2,)"]),
    ],
)
def test_failed_environment_error_names_index_step_and_traceback(command, tmp_path, fault, facts):
    options = ["+env.kwargs.show=[state]", f"+env.kwargs.fault={fault}", "env.max_restarts=0"]
    once = f"+env.kwargs.once={tmp_path / 'broken'}"
    code, _, err = command(*ROOM, *options, once, "run_name=run")
    log = tmp_path / "outputs" / "run" / "run.log"
    assert (code, err.count("\n")) == (1, 1)
    assert_names(err, "environment 0", "policy step 3", *facts)
    frames = [line for line in log.read_text().splitlines() if line.startswith("  File ")]
    if fault in ("raise", "exit"):
        assert str(log) in err and ", in fail" in frames[-1]
    else:
        assert str(log) not in err and frames == []


def test_update_out_of_memory_fails_in_one_line(command):
    code, _, err = command("algo.per_rank_batch_size=1000000000000")
    assert (code, err.count("\n")) == (1, 1)
    assert_names(err, "out of memory", "per_rank_batch_size")


def test_checkpoint_of_another_shape_error_names_both_shapes(copy, untracked):
    config, folder = copy
    before = folder_contents(folder)
    wider = replace(config, resume=str(folder), algo=replace(config.algo, dense_units=24))
    with pytest.raises(ConfigError, match=r"\(.*16.*\).*\(.*24.*\)"):
        train(wider, folder)
    assert folder_contents(folder) == before


def test_incomplete_checkpoint_error_names_what_is_missing(copy, untracked):
    """The file is like the best policy, but among the checkpoints."""
    from llmdreamer.checkpoint.files import Checkpoints

    config, folder = copy
    agent = Checkpoints(folder / "checkpoints", 3).newest(torch.device("cpu"))["trainer"]["agent"]
    path = Checkpoints(folder / "checkpoints", 3).save({"trainer": {"agent": agent}}, 99)
    before = folder_contents(folder)
    longer = replace(config, resume=str(folder), algo=replace(config.algo, total_steps=128))
    with refused(ConfigError, path, "optimizer"):
        train(longer, folder)
    assert folder_contents(folder) == before
