"""A whole run at a tiny budget: what it owes, what it leaves, and that going on changes nothing."""

import json
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from smallest import TINY, differing, rows, saved

from llmdreamer import openloop as open_loop
from llmdreamer.config import from_yaml
from llmdreamer.evaluate import main as evaluated
from llmdreamer.imagine import main as imagine
from llmdreamer.replay.layout import row_dtype
from llmdreamer.tracking import prepare
from llmdreamer.tracking.spool import read
from llmdreamer.tracking.store import connect
from llmdreamer.training.checkpoint import Checkpoints
from llmdreamer.training.evaluate import RUN_OFF, evaluate
from llmdreamer.training.loop import train
from llmdreamer.training.trainer import restore_agent
from llmdreamer.types import EnvSpec

ROOT = Path(os.environ["LLMDREAMER_ROOT"])


class Unknown(gym.Env):
    """An environment that nobody has written a snapshot for: ten steps of the step's number."""

    def __init__(self, render_mode=None):
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), 1.0, self.count == 10, False, {}


if "LoopUnknown-v0" not in gym.registry:
    gym.register("LoopUnknown-v0", Unknown)


def folder_of(path):
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_updates_are_the_replay_ratios_share_of_the_steps(compose, tmp_path, untracked, ratio):
    train(compose(*TINY, "backbone=gru", f"replay_ratio={ratio}"), tmp_path)
    assert saved(tmp_path)["optimizer"]["updates"] == math.floor(ratio * (64 - 16))


def test_updates_that_wait_for_the_first_sequence_are_made_up_for(compose, tmp_path, untracked):
    # With four environments, twelve steps are three rows each: no sequence of eight to learn from.
    train(
        compose(
            *TINY, "backbone=gru", "env.num_envs=4", "algo.learning_starts=12", "replay_ratio=0.5"
        ),
        tmp_path,
    )
    assert saved(tmp_path)["optimizer"]["updates"] == (64 - 12) // 2


@pytest.mark.parametrize("backbone", ["gpt2", "gru"])
def test_a_resumed_run_is_the_uninterrupted_one(compose, tmp_path, untracked, backbone):
    anneal = "algo.optimizer.anneal=0.5"
    config = compose(*TINY, f"backbone={backbone}", "env.num_envs=2", "checkpoint.every=40", anneal)
    whole, killed = folder_of(tmp_path / "whole"), tmp_path / "killed"
    straight = train(config, whole)
    # As if killed just before the end: replay and metrics are ahead of the newest checkpoint.
    shutil.copytree(whole, killed)
    max((killed / "checkpoints").iterdir()).unlink()
    assert saved(killed)["collector"]["policy_step"] == 40
    torch.manual_seed(123)  # what the process did before must not matter
    resumed = train(replace(config, resume=str(killed)), killed)
    assert differing(saved(whole), saved(killed)) == []
    assert rows(killed) == rows(whole)
    assert resumed.evaluation.returns.tolist() == straight.evaluation.returns.tolist()


FAMILIES = {
    **{name: [f"backbone={name}"] for name in ("gpt2", "smollm2", "qwen3", "pythia", "gru")},
    **{name: [f"backbone={name}"] for name in ("mamba", "mamba2")},
    "lora": ["backbone=gpt2", "peft=true"],
    "coupled": ["backbone=gru", "posterior=coupled"],
    "hf": [
        *("backbone=hf", "backbone.model_type=opt"),
        "backbone.config={hidden_size:16,num_hidden_layers:1,num_attention_heads:2,ffn_dim:16}",
    ],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_backbone_resumes_bit_for_bit(compose, tmp_path, untracked, family):
    few = ["algo.total_steps=32", "checkpoint.every=20", "env.num_envs=2", "eval.open_loop=0"]
    config = compose(*TINY, *FAMILIES[family], *few, "replay_ratio=0.25", "eval.final_episodes=1")
    whole, killed = folder_of(tmp_path / "whole"), tmp_path / "killed"
    train(config, whole)
    shutil.copytree(whole, killed)
    max((killed / "checkpoints").iterdir()).unlink()
    assert saved(killed)["collector"]["policy_step"] == 20 and saved(killed)["optimizer"]["updates"]
    torch.manual_seed(123)
    train(replace(config, resume=str(killed)), killed)
    assert differing(saved(whole), saved(killed)) == []
    assert rows(killed) == rows(whole)


def test_an_environment_without_snapshot_resumes_with_a_new_episode(
    compose, tmp_path, untracked, caplog
):
    config = compose(*TINY, "backbone=gru", "env=gym", "env.id=LoopUnknown-v0")
    train(replace(config, algo=replace(config.algo, total_steps=45)), tmp_path)
    train(replace(config, resume=str(tmp_path)), tmp_path)
    assert "LoopUnknown-v0 has no verified snapshot" in caplog.text
    collector = saved(tmp_path)["collector"]
    # Steps 46 to 64 begin an episode, not at its fifth step: one of ten steps, then nine.
    assert (collector["policy_step"], collector["lengths"]) == (64, [9])
    # In replay the episode that the stop cut ends as truncated, and the next row begins one.
    raw = b"".join(path.read_bytes() for path in sorted((tmp_path / "replay").rglob("*.rows")))
    stored = np.frombuffer(raw, row_dtype(EnvSpec({"state": (1,)}, 2, True)))
    # Four of eleven rows each, then rows 44 to 49, of observations 0 to 5.
    assert np.flatnonzero(stored["truncated"]).tolist() == [49]
    assert stored["is_first"][50] and stored["observations/state"][49:51, 0].tolist() == [5, 0]


def test_an_evaluation_leaves_training_as_it_was(compose, tmp_path, untracked):
    config = compose(*TINY, "backbone=gru")
    often, never = folder_of(tmp_path / "often"), folder_of(tmp_path / "never")
    train(replace(config, eval=replace(config.eval, every=8)), often)
    train(config, never)
    assert differing(saved(often), saved(never)) == []


def test_evaluations_by_one_seed_are_the_same_and_draw_nothing_of_trainings(
    compose, tmp_path, untracked, capsys
):
    config = compose(*TINY, "backbone=gpt2", "eval.greedy=false")
    result = train(config, tmp_path).evaluation
    assert "(mean ± sd of 2 episodes, policy sampled)" in capsys.readouterr().out
    agent = restore_agent(config, Checkpoints(tmp_path / "checkpoints", 2))
    before = torch.get_rng_state()
    modes, drawn, others = (
        [evaluate(agent, config.env, 8, seed, greedy=greedy).returns.tolist() for _ in range(2)]
        for seed, greedy in [(5, True), (5, False), (6, False)]
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert modes[0] == modes[1] and drawn[0] == drawn[1]
    assert modes[0] != drawn[0] != others[0]
    again = evaluate(agent, config.env, len(result.returns), config.seed, greedy=False)
    assert again.returns.tolist() == result.returns.tolist()


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(compose, tmp_path, untracked):
    config = compose(*TINY, "backbone=gru", "checkpoint.every=32")
    first = train(config, tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    again = train(replace(config, resume=str(tmp_path)), tmp_path)
    assert saved(tmp_path)["collector"]["policy_step"] == 64
    assert again.evaluation.returns.tolist() == first.evaluation.returns.tolist()


@pytest.fixture(scope="module")
def recorded(compose, tmp_path_factory):
    """A finished run and what MLflow says of it."""
    folder = tmp_path_factory.mktemp("recorded")
    run_dir = folder_of(folder / "run")
    uri = f"sqlite:///{folder}/mlflow.db"
    # Making the store takes longer than a run's end waits on a busy machine.
    prepare(uri, "llmdreamer")
    before = Path.cwd()
    os.chdir(folder)  # the store's artifacts lie where the command was typed
    try:
        often = [one for one in TINY if one != "eval.every=0"] + ["eval.every=32"]
        train(compose(*often, "seed=3", f"tracking.uri={uri}"), run_dir, ["seed=3"])
    finally:
        os.chdir(before)
    # On a busy machine the upload goes on after the run has stopped waiting for it; its end comes last.
    deadline = time.monotonic() + 60
    while not (runs := [run for run in runs_in(uri) if run.info.status == "FINISHED"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (run,) = runs
    return run_dir, uri, run


def runs_in(uri):
    client = connect(uri)
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


def test_the_table_of_metrics_names_every_one_and_no_other(recorded):
    run_dir = recorded[0]
    logged = {key for row in read(run_dir / "metrics.jsonl") for key in row.metrics}
    lines = (ROOT / "docs" / "metrics.md").read_text().splitlines()
    named = set(re.findall(r"`([a-z_]+/[a-z_]+)`", " ".join(x.split(" | ")[0] for x in lines)))
    # Neither adapters nor Adam nor images nor values of actions are in this run, and no evaluations and
    # checkpoints on the way.
    named -= {"optimizer/lora_gradient_norm", "time/compile_seconds", "behavior/action_value_loss"}
    named -= {"time/evaluation_share", "time/checkpoint_share"}
    named -= {"open_loop/image_error", "open_loop/image_error_repeated"}
    named -= {"system/gpu_memory_bytes", "system/gpu_memory_share"}
    assert logged - {"time/evaluation_share", "time/checkpoint_share"} == named


def test_mlflow_has_the_run_finished_with_its_parameters_and_tags(recorded):
    _, _, run = recorded
    assert run.info.status == "FINISHED"
    assert run.data.params["algo.horizon"] == "3"
    tags = {"arm": "scratch", "seed": "3", "backbone": "gpt2", "posterior": "decoupled"}
    tags |= {"overrides": "seed=3", "host": platform.node(), "version.torch": version("torch")}
    assert re.fullmatch("[0-9a-f]{10}", run.data.tags["cell"])
    assert {key: run.data.tags[key] for key in tags} == tags


def test_mlflow_has_every_row_by_environment_step(recorded):
    run_dir, uri, run = recorded
    rows = [row for row in read(run_dir / "metrics.jsonl") if "world_model/loss" in row.metrics]
    history = connect(uri).get_metric_history(run.info.run_id, "world_model/loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (row.env_step, row.metrics["world_model/loss"]) for row in rows
    ]
    assert rows[-1].env_step == 64


def test_compute_and_the_time_split_add_up(recorded):
    rows = [row.metrics for row in read(recorded[0] / "metrics.jsonl")]
    rows = [row for row in rows if "compute/flops" in row]
    assert rows
    for row in rows:
        assert row["compute/flops"] == row["replay/updates"] * row["compute/flops_per_update"] > 0
        parts = {stage: row[f"time/{stage}_share"] for stage in PARTS}
        assert all(share > 0 for share in parts.values())
        assert sum(parts.values()) <= 1
        # Imagining means many steps of the backbone, each after the other.
        assert parts["imagination"] > parts["tracking"]


PARTS = ("environment", "replay", "world_model", "imagination", "behavior", "gradient", "tracking")


def test_mlflow_has_the_runs_files(recorded):
    run_dir, uri, run = recorded
    client = connect(uri)
    top = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "environment.json", "returns.png", "checkpoints", "best"} <= top
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["id"] == "CartPole-v1" and environment["observations"] == {"state": [4]}
    assert environment["action_size"] == 2 and environment["discrete"]
    kept = {Path(i.path).name for i in client.list_artifacts(run.info.run_id, "checkpoints")}
    assert kept == {path.name for path in (run_dir / "checkpoints").iterdir()}


def test_the_best_policy_is_kept_and_evaluated_anew(recorded, capsys):
    run_dir = recorded[0]
    best, config = Checkpoints(run_dir / "best", 1), from_yaml(run_dir / "config.yaml")
    again = evaluate(
        restore_agent(config, best),
        config.env,
        config.eval.final_episodes,
        config.seed + RUN_OFF,
        greedy=True,
    )
    assert best.newest(torch.device("cpu"))["mean"] == again.mean
    assert evaluated(["--best", "--episodes=2", str(run_dir)]) == 0
    assert re.match(r"return \d+\.\d{1,2} ± ", capsys.readouterr().out)


def test_the_saved_configuration_is_the_runs_own(recorded):
    run_dir, _, _ = recorded
    assert from_yaml(run_dir / "config.yaml").seed == 3


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_preempted_run_leaves_a_checkpoint_to_go_on_from_and_a_killed_run(tmp_path, signum, code):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    prepare(uri, "llmdreamer")  # here, where nobody waits for it
    typed = (*TINY, "backbone=gru", "run_name=stopped", f"tracking.uri={uri}")
    argv = [sys.executable, str(ROOT / "run.py"), *typed]
    endless = ["algo.total_steps=1000000", "checkpoint.every=32"]
    process = subprocess.Popen(
        [*argv, *endless],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = tmp_path / "outputs" / "stopped"
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob("checkpoints/*.pt")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signum)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, "go on with: python run.py resume=" in out) == (code, True)
    assert saved(folder)["collector"]["policy_step"] >= 32
    # The uploader may outlive the run by a little; it says when it has told all.
    deadline = time.monotonic() + 60
    while (status := [run.info.status for run in runs_in(uri)]) != ["KILLED"]:
        assert time.monotonic() < deadline, status
        time.sleep(0.2)


@pytest.mark.parametrize("source", [[], ["--replay"]])
def test_a_runs_world_model_is_measured_from_its_folder(recorded, tmp_path, capsys, source):
    run_dir = recorded[0]
    assert imagine([str(run_dir), "--windows=4", "--samples=2", f"--out={tmp_path}", *source]) == 0
    assert "steps ahead" in capsys.readouterr().out
    found = open_loop.load(tmp_path / open_loop.FILE)
    assert (found.context, found.horizon) == (5, 3) and found.windows[0] <= 4
    assert (tmp_path / "prediction-error.png").exists()
    assert (tmp_path / "imagined-state.svg").exists()


def test_what_a_run_measured_at_its_end_lies_in_its_folder_and_its_artifacts(recorded):
    run_dir, uri, run = recorded
    found = open_loop.load(run_dir / open_loop.FILE)
    (row,) = [r for r in read(run_dir / "metrics.jsonl") if "open_loop/vector_error" in r.metrics]
    assert row.metrics == found.metrics()
    names = [item.path for item in connect(uri).list_artifacts(run.info.run_id)]
    assert open_loop.FILE in names


@pytest.mark.parametrize(
    ("typed", "said"),
    [(["--horizon=0"], "--horizon 0: must be >= 1"), (["--replay"], "missing replay")],
)
def test_what_cannot_be_imagined_is_one_line(recorded, tmp_path, capsys, typed, said):
    shutil.copytree(recorded[0] / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(recorded[0] / "config.yaml", tmp_path)
    assert imagine([str(tmp_path), *typed]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
