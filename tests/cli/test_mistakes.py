"""Every mistake in a command is one line that names it, exits 2 and leaves nothing behind."""

import sys

import pytest

from llmdreamer.errors import did_you_mean

STUDY = "-m algo.horizon=5,6 hydra.sweeper.n_trials=3"
MISTAKES = [
    ("algo.lrr=1", "unknown key 'algo.lrr'; did you mean 'algo.optimizer.lr'?"),
    ("modle=S", "unknown key 'modle'; did you mean 'model'?"),
    ("+foo=1", "unknown key 'foo'"),
    ("+algo.foo=1", "unknown key 'algo.foo'"),
    ("tests=1", "unknown key 'tests'"),
    ("env.kwargs.g=1", "env.kwargs has no 'g' yet: add it with +env.kwargs.g=..."),
    ("backbone=gtp2", "backbone=gtp2: no such option; choose from block_gru, gpt2, gru, hf, "),
    ("backbone=gtp2", "; did you mean 'gpt2'?"),
    ("model=Q", "model=Q: no such option; choose from L, M, S, XS"),
    ("model=3", "model=3: no such option; choose from L, M, S, XS"),
    ("algo.per_rank_batch_size=big", "algo.per_rank_batch_size='big': must be an integer"),
    ("algo.per_rank_batch_size=-1", "algo.per_rank_batch_size=-1: must be >= 1"),
    ("algo.horizon=1.5", "algo.horizon=1.5: must be an integer"),
    ("algo.horizon=true", "algo.horizon=true: must be an integer"),
    ("algo.gamma=high", "algo.gamma='high': must be a number"),
    ("algo.optimizer.lr=nan", "algo.optimizer.lr=nan: must be a finite number, and > 0"),
    ("peft=maybe", "peft='maybe': must be true or false"),
    ("seed=null", "seed=null: must be an integer"),
    ("threads=two", "threads='two': must be an integer or null"),
    ("algo.mlp_keys.encoder=state", "algo.mlp_keys.encoder='state': must be a list, like [a,b]"),
    ("algo.optimizer=3", "algo.optimizer=3: algo.optimizer holds several values, set them one by"
     " one: algo.optimizer.lr=..."),
    ("algo.horizon=${foo}", "algo.horizon: Interpolation key 'foo' not found"),
    ("env=gym", "env.id is needed: give env.id=..."),
    ("algo.lr=[1", "algo.lr=[1: the value cannot be read; brackets and quotes come in pairs"),
    ("run_name=é", """ need quotes that the shell leaves: 'run_name="é"'"""),
    ('run_name="é"', "run_name='é': must be 1 to 100 of the characters"),
    ("model==S", """: the value cannot be read; """),
    ("model:S", "model:S: not of the form key=value"),
    ("resume=", "resume=: give a run's folder, or auto"),
    ("threads=100000", "threads=100000: must be in [1, 1024]"),
    ("algo.total_steps=99999999999999999999999", "must be <= 9007199254740992"),
    ("algo.horizon=99999999999999999999999", "must be <= 9007199254740992"),
    ("foo", "foo: not of the form key=value"),
    ("run_name=ä", """need quotes that the shell leaves: 'run_name="ä"'"""),
    ("env.kwargs={a:1}", "env.kwargs has no such key yet: add each with +env.kwargs.NAME=..."),
    ("run_name=../../x", "run_name='../../x': must be 1 to 100 of the characters"),
    ("output_root=/etc/passwd", "/etc/passwd is not a folder"),
    ("output_root=/proc/nowhere", "/proc/nowhere"),  # where even root may make no folder
    ("-m seed=0,1 output_root=/proc/nowhere", "/proc/nowhere cannot be made or read: No such file"),
    ("resume=auto", "resume=auto: give run_name=..., the run to look for"),
    ("resume=nope", "missing checkpoint: resume=nope is not a run's folder"),
    ("model=S,M", "model=S,M is a list of values: add -m (python run.py -m model=S,M)"),
    ("seed=range(3)", "seed=range(3) is a list of values: add -m"),
    ("sweeps=smoke", "sweeps=smoke is a sweep: add -m (python run.py -m sweeps=smoke)"),
    ("sweeps=a,b", "sweeps=a,b: give one sweep specification at a time"),
    ("-m sweeps=a,b", "one sweep specification at a time (python run.py -m sweeps=a)"),
    ("seeds=3", "seeds=3 is for sweeps: add -m (python run.py -m seeds=3)"),
    ("rerun=true", "rerun=true is for sweeps: add -m"),
    ("-m seeds=2 seed=0,1", "seeds=2 and seed=0,1: give one of the two"),
    ("-m algo.horizon=interval(1,9)", "a grid needs single values; for a search give hydra.sweeper"),
    ("-m hydra.sweeper.n_trials=3", "a study needs values to choose from"),
    ("-m seed=0,a", "seed=0,a: 'a' is no whole number"),
    ("-m seed=0,1 hydra.sweeper.retries=-1", "hydra.sweeper.retries=-1: must be >= 0"),
    ("-m seed=0,1 hydra.sweeper.n_trails=1", "; did you mean 'hydra.sweeper.n_trials'?"),
    ("-m seed=0,1 hydra.sweeper.n_trials=x", "n_trials=x: must be an integer or null"),
    ("-m seed=0,1 hydra.sweeper.devices=0", "devices=0: must be a list, like [a,b]"),
    ("-m seed=0,1 hydra.sweeper.command=[nobody]", "hydra.sweeper.command: there is no program nobody"),
    ("-m +hydra.sweeper.params.algo.horizon=5", "in one, 'algo.horizon: VALUES', or typed as algo"),
    (f"{STUDY} env.id=glob(*)", "env.id=glob(*): no values, range or interval"),
    ("-m seed=0,1 hydra/launcher=submitit_slurm hydra.launcher.timeout_min=x", "could not be converted"),
    ("-m seed=0,1 hydra/launcher=ray hydra.launcher.ray.init.address=auto",
     "unknown key 'hydra.launcher.ray.init.address': docs/clusters.md has those of each hydra/launcher"),
    ("-m seed=0,1 hydra/launcher=submitit_local +hydra.launcher.nodes=2", "launcher.nodes: no such option;"),
    ("-m seed=0,1 +hydra.sweeper.n_trails=2", "choose from params, "),
    ("hydra/launcher=ray", "hydra/launcher=ray places the runs of a sweep: add -m (python run.py -m hydra/"),
    ("-m seed=0,1 hydra/launcher=submitit", "; did you mean 'submitit_local'?"),
    (f"{STUDY} hydra.sweeper.n_trials=0", "hydra.sweeper.n_trials=0: must be >= 1"),
    (f"{STUDY} algo.lrr=1,2", "unknown key 'algo.lrr'; did you mean 'algo.optimizer.lr'?"),
    (f"{STUDY} algo.gamma=range(1,1)", "algo.gamma=range(1,1): "),
    (f"{STUDY} hydra.sweeper.pruner=medain", "did you mean 'median'?"),
    (f"{STUDY} hydra.sweeper.pruner=wilcoxon", "compares seeds: give seeds=2 or more"),
    (f"{STUDY} hydra.sweeper.pruner=median objective='eval/return,replay/updates'"
     " hydra.sweeper.direction=[maximize,minimize]", "several objectives cannot prune"),
    (f"{STUDY} objective='eval/return,replay/updates'", "1 for 2 objectives (eval/return, replay"),
    (f"{STUDY} hydra.sweeper.storage=redis://me:secret@host/x", "redis://me:***@host/x: "),
    (f"{STUDY} +hydra.sweeper.arms.a='peft=true'", "set hydra.sweeper.study_per_arm=true"),
    ("-m +hydra.sweeper.arms.a='seed=0,1'", "an arm takes one of each"),
    ("-m seed=0,1 hydra.sweeper.devices=[0] hydra.sweeper.n_jobs=2", "1 devices take 1 runs"),
    ("-m seed=0,1 hydra.sweeper.n_jobs=0", "hydra.sweeper.n_jobs=0: must be >= 1"),
    ("-m seed=0,1 hydra.sweeper.n_job=2", "n_job"),
    ("objective=eval/retrun", "no run logs eval/retrun; did you mean 'eval/return'? (docs/metrics.md"),
    (f"{STUDY} objective=eval/retrun:auc", "objective=eval/retrun:auc: no run logs eval/retrun; did"),
    ("-m seed=0,1 objective=eval/return:bst", "did you mean 'best'?"),
    ("-m seed=0,1 hydra.sweeper.study_name=../x", "hydra.sweeper.study_name='../x': must be 1 to"),
    ("-m seed=0,1 hydra.sweeper.direction=maximise", "did you mean 'maximize'?"),
    ("-m seed=0,1 tracking.uri=mlruns", "tracking.uri=mlruns: MLflow 3 keeps no runs in folders"),
    ("-m sweeps=smokee", "sweeps=smokee: no such option; choose from ablation, backbone_lr, "),
    ("-m resume=auto run_name=x seed=0,1", "resume=auto goes on with one run: leave out -m"),
    ("-m resume=x seed=0,1", "resume=x goes on with one run: leave out -m"),
    ("backbone.factory=os.system", "code of another package: type trust=[os] to let it run"),
    ("backbone.factory=os", "backbone.factory=os: must be like package.module.function"),
    ("algo.agent=os.x trust=[o]", "algo.agent=os.x is code of another package: type trust=[os]"),
    ("backbone.options.a=1", "backbone.options has no 'a' yet: add it with +backbone.options.a="),
    ("+backbone.options.a=1", "backbone.options={'a': 1}: nothing reads it without backbone.factory"),
    ("+algo.options.a=1", "algo.options={'a': 1}: nothing reads it without algo.agent"),
    ("backbone.language_model=true", "nothing reads it without backbone.factory"),
    ("+hydra.callbacks.x._target_=torch.load trust=[torch]", "trust=[torch]: what a file could call"),
    ("eval.open_loop=9007199254740992", "eval.open_loop=9007199254740992: must be in [0, 100000]"),
    ("trust=os", "trust='os': must be a list, like [a,b]"),
    ("hydra.searchpath=[pkg://nowhere.conf]", "there is no package nowhere.conf installed"),
    ("hydra.searchpath=[file:///no/where]", "there is no folder /no/where"),
    ("--frobnicate", "unrecognized arguments: --frobnicate; see python run.py --help"),
    ("-m --cfg job", "Only one of --run, --multirun, --cfg"),
    ("hydra/launcher=x", "hydra/launcher=x: no such option; choose from basic"),
    ("+hydra.callbacks.x._target_=os.system", "Target 'os.system' cannot be authorized"),
    ("--config-dir nope", "nope' not found"),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "line"), MISTAKES)
def test_a_mistake_is_one_line(command, tmp_path, training, typed, line):
    code, out, err = command(*typed.split())
    assert line in err
    assert (code, err.count("\n"), out) == (2, 1, "")
    assert training.runs == []
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_in_a_folder_that_no_uri_names_is_one_line(command, tmp_path, monkeypatch):
    folder = tmp_path / "feature%2Fx"
    folder.mkdir()
    monkeypatch.chdir(folder)
    code, out, err = command("-m", "seed=0,1")
    assert (code, err.count("\n"), out) == (2, 1, "")
    assert "feature%2Fx/mlflow.db: with '?', or '%' and two hex digits, in its name" in err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["submitit_slurm", "ray"])
def test_an_engine_that_is_not_installed_is_one_line(command, tmp_path, monkeypatch, name):
    package = name.partition("_")[0]
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = command("-m", "seed=0,1", f"hydra/launcher={name}")
    assert (code, err) == (2, f"hydra/launcher={name}: pip install 'llmdreamer[{package}]'\n")
    assert list(tmp_path.iterdir()) == []


def test_a_place_decides_over_its_devices_itself(command, monkeypatch):
    monkeypatch.setattr("llmdreamer.sweep.plan.find_spec", lambda name: name)
    code, _, err = command("-m", "seed=0,1", "hydra/launcher=ray", "hydra.sweeper.devices=[0]")
    assert (code, err[:28]) == (2, "hydra.sweeper.devices=[0]: o")


def test_a_misspelt_option_in_one_cell_fails_before_any_job(command, training):
    code, _, err = command("-m", "model=XS,Q", "seed=0,1")
    assert (code, training.runs) == (2, [])
    assert err == "model=Q: no such option; choose from L, M, S, XS\n"


@pytest.mark.parametrize(
    ("word", "choices", "near"),
    [
        ("gtp2", ["gpt2", "gru"], "; did you mean 'gpt2'?"),
        ("lr", ["lora.r", "algo.optimizer.lr"], "; did you mean 'algo.optimizer.lr'?"),
        ("Q", ["S", "M"], ""),
        ("x", [], ""),
    ],
)
def test_only_a_near_choice_is_offered(word, choices, near):
    assert did_you_mean(word, choices) == near
