"""Mistakes in a command: one line that names the mistake, exit code 2, and no files."""

import errno
import os
import re
import sys

import pytest
from refusals import assert_names

from llmdreamer.utils.errors import did_you_mean

STUDY = "-m algo.horizon=5,6 hydra.sweeper.n_trials=3"
MISTAKES = [
    ("algo.lrr=1", "'algo.lrr'", "'algo.optimizer.lr'"),
    ("modle=S", "'modle'", "'model'"),
    ("+foo=1", "'foo'"),
    ("+algo.foo=1", "'algo.foo'"),
    ("tests=1", "'tests'"),
    ("env.kwargs.g=1", "'g'", "+env.kwargs.g="),
    ("backbone=gtp2", "backbone=gtp2", "block_gru, gpt2, gru, hf, ", "'gpt2'"),
    ("model=Q", "model=Q", "L, M, S, XS"),
    ("model=3", "model=3", "L, M, S, XS"),
    ("algo.per_rank_batch_size=big", "algo.per_rank_batch_size='big'", "integer"),
    ("algo.per_rank_batch_size=-1", "algo.per_rank_batch_size=-1", ">= 1"),
    ("algo.horizon=1.5", "algo.horizon=1.5", "integer"),
    ("algo.horizon=true", "algo.horizon=true", "integer"),
    ("algo.gamma=high", "algo.gamma='high'", "number"),
    ("algo.optimizer.lr=nan", "algo.optimizer.lr=nan", "finite", "> 0"),
    ("peft=maybe", "peft='maybe'", "true", "false"),
    ("seed=null", "seed=null", "integer"),
    ("threads=two", "threads='two'", "integer", "null"),
    ("algo.mlp_keys.encoder=state", "algo.mlp_keys.encoder='state'", "list", "[a,b]"),
    ("algo.optimizer=3", "algo.optimizer=3", "algo.optimizer.lr="),
    ("algo.horizon=${foo}", "algo.horizon", "'foo'"),
    ("env=gym", "env.id=..."),
    ("algo.lr=[1", "algo.lr=[1", "brackets"),
    ("run_name=é", """'run_name="é"'"""),
    ('run_name="é"', "run_name='é'", "A-Z a-z 0-9 . _ -"),
    ("model==S", "model==S", "value"),
    ("model:S", "model:S", "key=value"),
    ("resume=", "resume=:", "auto"),
    ("threads=100000", "threads=100000", "[1, 1024]"),
    ("algo.total_steps=99999999999999999999999", "algo.total_steps=9999", "<= 9007199254740992"),
    ("algo.horizon=99999999999999999999999", "algo.horizon=9999", "<= 9007199254740992"),
    ("foo", "foo:", "key=value"),
    ("run_name=ä", """'run_name="ä"'"""),
    ("env.kwargs={a:1}", "env.kwargs", "+env.kwargs.NAME="),
    ("run_name=../../x", "run_name='../../x'", "A-Z a-z 0-9 . _ -"),
    ("output_root=/etc/passwd", "/etc/passwd", "folder"),
    ("output_root=/proc/nowhere", "/proc/nowhere"),  # even root cannot create a folder here
    ("-m seed=0,1 output_root=/proc/nowhere", "/proc/nowhere", os.strerror(errno.ENOENT)),
    ("resume=auto", "resume=auto", "run_name="),
    ("resume=nope", "resume=nope"),
    ("model=S,M", "model=S,M", "(python run.py -m model=S,M)"),
    ("seed=range(3)", "seed=range(3)", "(python run.py -m 'seed=range(3)')"),
    ("sweeps=smoke", "sweeps=smoke", "(python run.py -m sweeps=smoke)"),
    ("sweeps=a,b", "sweeps=a,b", "(python run.py -m sweeps=a)"),
    ("-m sweeps=a,b", "sweeps=a,b", "(python run.py -m sweeps=a)"),
    ("seeds=3", "seeds=3", "(python run.py -m seeds=3)"),
    ("rerun=true", "rerun=true", "(python run.py -m rerun=true)"),
    ("-m seeds=2 seed=0,1", "seeds=2", "seed=0,1"),
    ("-m algo.horizon=interval(1,9)", "algo.horizon=interval(1,9)", "hydra.sweeper.n_trials"),
    ("-m hydra.sweeper.n_trials=3", "study", "choose"),
    ("-m seed=0,a", "seed=0,a", "'a'"),
    ("-m seed=0,1 hydra.sweeper.retries=-1", "hydra.sweeper.retries=-1", ">= 0"),
    ("-m seed=0,1 hydra.sweeper.n_trails=1", "hydra.sweeper.n_trails", "'hydra.sweeper.n_trials'"),
    ("-m seed=0,1 hydra.sweeper.n_trials=x", "n_trials=x", "integer", "null"),
    ("-m seed=0,1 hydra.sweeper.devices=0", "devices=0", "list", "[a,b]"),
    ("-m seed=0,1 hydra.sweeper.command=[nobody]", "hydra.sweeper.command", "nobody"),
    ("-m +hydra.sweeper.params.algo.horizon=5", "'algo.horizon: VALUES'"),
    (f"{STUDY} env.id=glob(*)", "env.id=glob(*)"),
    ("-m seed=0,1 hydra/launcher=submitit_slurm hydra.launcher.timeout_min=x",
     "hydra.launcher.timeout_min", "'x'"),
    ("-m seed=0,1 hydra/launcher=ray hydra.launcher.ray.init.address=auto",
     "'hydra.launcher.ray.init.address'", "docs/clusters.md"),
    ("-m seed=0,1 hydra/launcher=submitit_local +hydra.launcher.nodes=2", "launcher.nodes"),
    ("-m seed=0,1 +hydra.sweeper.n_trails=2", "n_trails", "params, "),
    ("hydra/launcher=ray", "hydra/launcher=ray", "(python run.py -m hydra/launcher=ray)"),
    ("-m seed=0,1 hydra/launcher=submitit", "hydra/launcher=submitit", "'submitit_local'"),
    (f"{STUDY} hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0", ">= 1"),
    (f"{STUDY} algo.lrr=1,2", "'algo.lrr'", "'algo.optimizer.lr'"),
    (f"{STUDY} algo.gamma=range(1,1)", "algo.gamma=range(1,1)"),
    (f"{STUDY} hydra.sweeper.pruner=medain", "hydra.sweeper.pruner=medain", "'median'"),
    (f"{STUDY} hydra.sweeper.pruner=wilcoxon", "hydra.sweeper.pruner=wilcoxon", "seeds=2"),
    (f"{STUDY} hydra.sweeper.pruner=median objective='eval/return,replay/updates'"
     " hydra.sweeper.direction=[maximize,minimize]", "hydra.sweeper.pruner=median", "objectives"),
    (f"{STUDY} objective='eval/return,replay/updates'", "hydra.sweeper.direction", "2",
     "eval/return, replay/updates"),
    (f"{STUDY} hydra.sweeper.storage=redis://me:secret@host/x", "redis://me:***@host/x"),
    (f"{STUDY} +hydra.sweeper.arms.a='peft=true'", "hydra.sweeper.study_per_arm=true"),
    ("-m +hydra.sweeper.arms.a='seed=0,1'", "hydra.sweeper.arms", "seed=0,1"),
    ("-m seed=0,1 hydra.sweeper.devices=[0] hydra.sweeper.n_jobs=2", "hydra.sweeper.n_jobs=2", "<= 1"),
    ("-m seed=0,1 hydra.sweeper.n_jobs=0", "hydra.sweeper.n_jobs=0", ">= 1"),
    ("-m seed=0,1 hydra.sweeper.n_job=2", "'hydra.sweeper.n_job'"),
    ("objective=eval/retrun", "objective=eval/retrun", "'eval/return'", "docs/metrics.md"),
    (f"{STUDY} objective=eval/retrun:auc", "objective=eval/retrun:auc", "'eval/return'"),
    ("-m seed=0,1 objective=eval/return:bst", "objective=eval/return:bst", "'bst'", "'best'"),
    ("-m seed=0,1 hydra.sweeper.study_name=../x", "hydra.sweeper.study_name='../x'", "A-Z a-z 0-9"),
    ("-m seed=0,1 hydra.sweeper.direction=maximise", "maximise", "'maximize'"),
    ("-m seed=0,1 tracking.uri=mlruns", "tracking.uri=mlruns"),
    ("-m sweeps=smokee", "sweeps=smokee", "ablation, backbone_lr, "),
    ("-m resume=auto run_name=x seed=0,1", "resume=auto", "python run.py resume=auto"),
    ("-m resume=x seed=0,1", "resume=x", "python run.py resume=x"),
    ("backbone.factory=os.system", "backbone.factory=os.system", "trust=[os]"),
    ("backbone.factory=os", "backbone.factory=os:", "package.module.function"),
    ("algo.agent=os.x trust=[o]", "algo.agent=os.x", "trust=[os]"),
    ("backbone.options.a=1", "'a'", "+backbone.options.a="),
    ("+backbone.options.a=1", "backbone.options={'a': 1}", "backbone.factory"),
    ("+algo.options.a=1", "algo.options={'a': 1}", "algo.agent"),
    ("backbone.language_model=true", "backbone.language_model=True", "backbone.factory"),
    ("+hydra.callbacks.x._target_=torch.load trust=[torch]", "trust=[torch]"),
    ("eval.open_loop_windows=9007199254740992", "eval.open_loop_windows=9007199254740992", "[0, 100000]"),
    ("trust=os", "trust='os'", "list", "[a,b]"),
    ("hydra.searchpath=[pkg://nowhere.conf]", "hydra.searchpath", "package nowhere.conf"),
    ("hydra.searchpath=[file:///no/where]", "hydra.searchpath", "folder /no/where"),
    ("--frobnicate", "--frobnicate", "python run.py --help"),
    ("-m --cfg job", "--multirun", "--cfg"),
    ("hydra/launcher=x", "hydra/launcher=x", "basic"),
    ("+hydra.callbacks.x._target_=os.system", "'os.system'"),
    ("--config-dir nope", "nope'"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("typed", "parts"), [pytest.param(typed, parts, id=typed) for typed, *parts in MISTAKES]
)
def test_mistake_is_refused_in_one_line(command, tmp_path, training, typed, parts):
    code, out, err = command(*typed.split())
    assert_names(err, *parts)
    assert (code, err.count("\n"), out) == (2, 1, "")
    assert training.runs == []
    assert list(tmp_path.iterdir()) == []


def test_sweep_in_a_folder_with_percent_is_refused_in_one_line(command, tmp_path, monkeypatch):
    folder = tmp_path / "feature%2Fx"
    folder.mkdir()
    monkeypatch.chdir(folder)
    code, out, err = command("-m", "seed=0,1")
    assert (code, err.count("\n"), out) == (2, 1, "")
    assert_names(err, "feature%2Fx/mlflow.db", "'%'")
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["submitit_slurm", "ray"])
def test_launcher_that_is_not_installed_is_refused_in_one_line(
    command, tmp_path, monkeypatch, name
):
    package = name.partition("_")[0]
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = command("-m", "seed=0,1", f"hydra/launcher={name}")
    assert (code, err.count("\n")) == (2, 1)
    assert_names(err, f"hydra/launcher={name}", f"pip install 'llmdreamer[{package}]'")
    assert list(tmp_path.iterdir()) == []


def test_devices_are_refused_with_a_cluster_launcher(command, monkeypatch):
    monkeypatch.setattr("llmdreamer.sweep.plan.find_spec", lambda name: name)
    code, _, err = command("-m", "seed=0,1", "hydra/launcher=ray", "hydra.sweeper.devices=[0]")
    assert (code, err.count("\n")) == (2, 1)
    assert_names(err, "hydra.sweeper.devices=[0]")


def test_misspelled_option_in_one_cell_is_refused_before_any_job(command, training):
    code, _, err = command("-m", "model=XS,Q", "seed=0,1")
    assert (code, training.runs) == (2, [])
    assert err.count("\n") == 1
    assert_names(err, "model=Q", "L, M, S, XS")


@pytest.mark.parametrize(
    ("word", "choices", "suggested"),
    [
        ("gtp2", ["gpt2", "gru"], ["'gpt2'"]),
        ("lr", ["lora.r", "algo.optimizer.lr"], ["'algo.optimizer.lr'"]),
        ("Q", ["S", "M"], []),
        ("x", [], []),
    ],
)
def test_only_a_close_choice_is_suggested(word, choices, suggested):
    assert re.findall("'.*?'", did_you_mean(word, choices)) == suggested
    assert bool(did_you_mean(word, choices)) == bool(suggested)
