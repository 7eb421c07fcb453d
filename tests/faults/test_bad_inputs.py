"""Whatever is asked for and cannot be: one line before any training, exit code 2, nothing written.

One row at least for every kind of mistake; many more that the configuration alone shows are in
tests/cli/test_mistakes.py, and those of studies in tests/sweep/test_study.py.
"""

import json
import logging
import sys
from dataclasses import replace

import pytest
import torch
from smallest import contents
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
    (["replay.capacity=8"], ["replay.capacity=8", "9 rows"]),
    (["algo.total_steps=16"], ["nothing would train", "learning_starts=16", "total_steps=16"]),
    (["algo.total_steps=8", "algo.learning_starts=1"], ["nothing would train", "total_steps=8", "9 rows"]),
    (["env=gym", "env.id=CartPol-v1"], ["CartPol-v1", "did you mean", "CartPole-v1"]),
    (["env=gym", "env.id=nowhere:Grid-v0"], ["nowhere"]),
    ([*ROOM, "+env.kwargs.show=[bits]"], ["observation space MultiBinary", "supported: a Box"]),
    ([*ROOM, "+env.kwargs.show=[state]", "+env.kwargs.act=bits"], ["action space MultiBinary", "supported"]),
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
    (["sweeps=smoke"], ["sweeps=smoke is a sweep", "add -m"]),
    (["sweeps=a,b"], ["one sweep specification at a time"]),
    (["resume=nowhere"], ["missing checkpoint", "resume=nowhere"]),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "facts"), BAD_INPUTS, ids=lambda value: value[-1][:40])
def test_a_bad_input_is_one_line_and_nothing_is_written(command, tmp_path, overrides, facts):
    code, said, line = command(*overrides)
    assert [fact for fact in facts if fact not in line] == [], line
    assert (code, said, line.count("\n")) == (2, "", 1)
    assert left(tmp_path) == set()


def test_adapters_that_would_get_no_gradient_are_refused(command, tmp_path):
    # As where the environment says CI: what transformers says would be said by us once more, on stdout.
    enable_propagation()
    code, said, err = command(*FALCON, "lora.target_modules=[in_proj,dt_proj]")
    told = "lora.target_modules ['dt_proj'] get no gradient in this model: leave them out"
    assert (code, said, err.splitlines()[-1]) == (
        2,
        "",
        told,
    )  # before it, transformers on its slow kernel
    assert left(tmp_path) == set()
    assert not logging.getLogger("transformers").propagate


def left(folder):
    """All that lies below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_name_that_was_refused_can_be_used(command, tmp_path):
    assert command("run_name=run", "algo.mlp_keys.encoder=[stat]")[0] == 2
    assert command("run_name=run", "algo.total_steps=18")[0] == 0


def test_what_lay_in_the_folder_of_a_refused_run_stays(command, tmp_path):
    mine = tmp_path / "outputs" / "run" / "replay" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    code, _, line = command("run_name=run")
    assert code == 2 and "is not empty and not a replay folder" in line
    assert contents(tmp_path) == {"outputs/run/replay/notes.txt": b"mine"}


def test_an_extra_that_is_not_installed_is_told_with_its_command(command, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if f"{name}.".startswith("minigrid.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "llmdreamer.envs.minigrid", raising=False)
    monkeypatch.setitem(sys.modules, "minigrid", None)
    code, _, line = command("env=minigrid")
    assert (code, line) == (2, "env=minigrid needs minigrid: pip install 'llmdreamer[minigrid]'\n")
    assert left(tmp_path) == set()


def test_a_backbone_that_needs_code_of_its_own_is_refused_with_the_way_to_allow_it(
    command, tmp_path
):
    folder = tmp_path / "theirs"
    folder.mkdir()
    auto = {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": auto}))
    before = contents(tmp_path)
    code, _, line = command("backbone=hf", "pretrained=true", f"backbone.path={folder}")
    assert (code, line.count("\n")) == (2, 1)
    assert f"backbone.path={folder}" in line and "backbone.factory" in line and "trust=" in line
    assert contents(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_device_that_is_not_there(command, tmp_path):
    code, _, line = command("device=cuda")
    assert (code, line) == (2, "device=cuda: this machine has 0 CUDA devices; device=cpu works\n")
    assert left(tmp_path) == set()


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("raise", "OSError: a fuse is blown"),
        ("nan", "key 'state': observation is not finite (NaN)"),
        ("shape", "key 'state': observation of shape (3,), not (2,)"),
    ],
)
def test_an_environment_that_fails_is_told_with_its_number_its_step_and_its_traceback(
    command, tmp_path, fault, cause
):
    more = ["+env.kwargs.show=[state]", f"+env.kwargs.fault={fault}", "env.max_restarts=0"]
    once = f"+env.kwargs.once={tmp_path / 'broken'}"
    code, _, line = command(*ROOM, *more, once, "run_name=run")
    log = tmp_path / "outputs" / "run" / "run.log"
    where = f" (traceback: {log})" if fault == "raise" else ""
    assert (code, line) == (1, f"environment 0, policy step 3: {cause}{where}\n")
    raised = [one for one in log.read_text().splitlines() if one.startswith("  File ")]
    assert (", in fail" in raised[-1] if raised else "") == (fault == "raise" or "")


def test_an_update_that_the_memory_does_not_hold_is_one_line(command):
    code, _, line = command("algo.per_rank_batch_size=1000000000000")
    assert (code, line.count("\n")) == (1, 1)
    assert line.startswith("out of memory (Unable to allocate") and "per_rank_batch_size" in line


def test_a_checkpoint_of_another_shape_is_told_with_both(copy, untracked):
    config, folder = copy
    before = contents(folder)
    other = replace(config, resume=str(folder), algo=replace(config.algo, dense_units=24))
    with pytest.raises(
        ConfigError, match=r"of another size: \S+ is \(.*16.*\) there, \(.*24.*\) in"
    ):
        train(other, folder)
    assert contents(folder) == before


def test_a_file_that_is_no_whole_checkpoint_is_told_with_what_it_lacks(copy, untracked):
    """As the best policy, laid among the checkpoints."""
    from llmdreamer.checkpoint.files import Checkpoints

    config, folder = copy
    agent = Checkpoints(folder / "checkpoints", 3).newest(torch.device("cpu"))["trainer"]["agent"]
    path = Checkpoints(folder / "checkpoints", 3).save({"trainer": {"agent": agent}}, 99)
    before = contents(folder)
    longer = replace(config, resume=str(folder), algo=replace(config.algo, total_steps=128))
    with pytest.raises(ConfigError) as error:
        train(longer, folder)
    assert str(path) in str(error.value)
    assert "optimizer" in str(error.value) and "\n" not in str(error.value)
    assert contents(folder) == before
