"""Whole runs with a tiny budget: number of updates, resuming, and evaluation."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tiny_run import TINY, differing_paths, metric_records, mlflow_runs, saved_trainer

from llmdreamer.agent.restore import restore_agent
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.evaluation.episodes import evaluate
from llmdreamer.replay.layout import step_dtype
from llmdreamer.tracking import Spool, ensure_experiment
from llmdreamer.tracking.record import MlflowRunRef, RunFiles, RunRecord, load, save
from llmdreamer.training.loop import train
from llmdreamer.types import EnvSpec

ROOT = Path(os.environ["LLMDREAMER_ROOT"])


class CountingEnv(gym.Env):
    """An environment without a snapshot. Observations count the ten steps of an episode."""

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
    gym.register("LoopUnknown-v0", CountingEnv)


def make_folder(path):
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_number_of_updates_follows_the_replay_ratio(compose, tmp_path, untracked, ratio):
    train(compose(*TINY, "backbone=gru", f"replay_ratio={ratio}"), tmp_path)
    assert saved_trainer(tmp_path)["optimizer"]["updates"] == math.floor(ratio * (64 - 16))


def test_updates_due_before_the_first_sequence_are_made_later(compose, tmp_path, untracked):
    # With four environments, twelve steps are three time steps each: too few for a sequence of eight.
    train(
        compose(
            *TINY, "backbone=gru", "env.num_envs=4", "algo.learning_starts=12", "replay_ratio=0.5"
        ),
        tmp_path,
    )
    assert saved_trainer(tmp_path)["optimizer"]["updates"] == (64 - 12) // 2


@pytest.mark.parametrize("backbone", ["gpt2", "gru"])
def test_resumed_run_equals_the_uninterrupted_one(compose, tmp_path, untracked, backbone):
    anneal = "algo.optimizer.anneal=0.5"
    config = compose(*TINY, f"backbone={backbone}", "env.num_envs=2", "checkpoint.every=40", anneal)
    whole, killed = make_folder(tmp_path / "whole"), tmp_path / "killed"
    uninterrupted = train(config, whole)
    # As if killed just before the end: replay and metrics are ahead of the newest checkpoint.
    shutil.copytree(whole, killed)
    max((killed / "checkpoints").iterdir()).unlink()
    assert saved_trainer(killed)["collector"]["policy_step"] == 40
    torch.manual_seed(123)  # random numbers drawn before must not matter
    resumed = train(replace(config, resume=str(killed)), killed)
    assert differing_paths(saved_trainer(whole), saved_trainer(killed)) == []
    assert metric_records(killed) == metric_records(whole)
    assert resumed.evaluation.returns.tolist() == uninterrupted.evaluation.returns.tolist()


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
    few = [
        "algo.total_steps=32",
        "checkpoint.every=20",
        "env.num_envs=2",
        "eval.open_loop_windows=0",
    ]
    config = compose(*TINY, *FAMILIES[family], *few, "replay_ratio=0.25", "eval.final_episodes=1")
    whole, killed = make_folder(tmp_path / "whole"), tmp_path / "killed"
    train(config, whole)
    shutil.copytree(whole, killed)
    max((killed / "checkpoints").iterdir()).unlink()
    state = saved_trainer(killed)
    assert state["collector"]["policy_step"] == 20 and state["optimizer"]["updates"]
    torch.manual_seed(123)
    train(replace(config, resume=str(killed)), killed)
    assert differing_paths(saved_trainer(whole), saved_trainer(killed)) == []
    assert metric_records(killed) == metric_records(whole)


class RandomStartEnv(CountingEnv):
    """The same environment, but each episode starts with a random observation."""

    def reset(self, *, seed=None, options=None):
        _, info = super().reset(seed=seed)
        return self.np_random.random(1, np.float32), info


if "LoopRandomStart-v0" not in gym.registry:
    gym.register("LoopRandomStart-v0", RandomStartEnv)


def test_resumed_run_without_snapshots_repeats_no_episode(compose, tmp_path, untracked):
    config = compose(*TINY, "backbone=gru", "env=gym", "env.id=LoopRandomStart-v0")
    for total in (25, 45, 64):
        longer = replace(config, algo=replace(config.algo, total_steps=total))
        train(longer if total == 25 else replace(longer, resume=str(tmp_path)), tmp_path)
    raw = b"".join(path.read_bytes() for path in sorted((tmp_path / "replay").rglob("*.steps")))
    stored = np.frombuffer(raw, step_dtype(EnvSpec({"state": (1,)}, 2, True)))
    begins = stored["observations/state"][stored["is_first"], 0].tolist()
    assert len(begins) == 3 + 2 + 2 and len({*begins}) == len(begins)


def test_killed_run_with_a_small_replay_resumes(compose, tmp_path, untracked):
    # Between two checkpoints it collects more steps than its replay holds.
    small = ["replay.capacity=20", "checkpoint.every=24", "algo.total_steps=96", "replay_ratio=0.1"]
    config = compose(*TINY, *small, "backbone=gru", "eval.open_loop_windows=0")
    train(config, tmp_path)
    newest, *_ = sorted((tmp_path / "checkpoints").iterdir(), reverse=True)
    newest.unlink()
    assert saved_trainer(tmp_path)["collector"]["policy_step"] == 72
    train(replace(config, resume=str(tmp_path)), tmp_path)
    assert saved_trainer(tmp_path)["collector"]["policy_step"] == 96


def test_run_resumed_at_another_replay_ratio_makes_no_extra_updates(compose, tmp_path, untracked):
    schedule = ["algo.optimizer.anneal=1", "algo.optimizer.warmup=0", "algo.optimizer.lr=1e-3"]
    config = compose(*TINY, "backbone=gru", "replay_ratio=0.5", *schedule)
    train(replace(config, algo=replace(config.algo, total_steps=40)), tmp_path)
    assert saved_trainer(tmp_path)["optimizer"]["updates"] == (40 - 16) // 2
    twice = replace(config, algo=replace(config.algo, replay_ratio=1.0), resume=str(tmp_path))
    train(twice, tmp_path)
    optimizer = saved_trainer(tmp_path)["optimizer"]
    assert optimizer["updates"] == 36 == (40 - 16) // 2 + (64 - 40)
    groups = {group["name"]: group for group in optimizer["laprop"]["param_groups"]}
    assert groups["rest"]["lr"] == pytest.approx(1e-3 / 36)  # the rate of the last update


def test_run_stopped_before_its_first_checkpoint_restarts_as_a_new_run(
    compose, tmp_path, untracked
):
    """The new attempt may have another configuration, so no record of the old one may remain."""
    files = RunFiles(tmp_path)
    save(RunRecord("u", "e", "old", {"algo.per_rank_batch_size": 16}, {}, 1000.0), files.run_record)
    save(MlflowRunRef("u", "e", key="k", run_id="old-run"), files.mlflow_run)
    Spool(files.metrics).append({"loss": 1.0}, 7)
    train(compose(*TINY, "backbone=gru", "run_name=x", "resume=auto"), tmp_path)
    assert not files.mlflow_run.exists()
    wanted = load(RunRecord, files.run_record)
    assert wanted.params["algo.per_rank_batch_size"] == 4 and wanted.started > 1000
    assert all("loss" not in metrics for _, metrics in metric_records(tmp_path))
    assert json.loads(files.orphaned_runs.read_text())["run_id"] == "old-run"


def test_environment_without_snapshot_resumes_with_a_new_episode(
    compose, tmp_path, untracked, caplog
):
    config = compose(*TINY, "backbone=gru", "env=gym", "env.id=LoopUnknown-v0")
    train(replace(config, algo=replace(config.algo, total_steps=45)), tmp_path)
    train(replace(config, resume=str(tmp_path)), tmp_path)
    assert "LoopUnknown-v0 has no verified snapshot" in caplog.text
    collector = saved_trainer(tmp_path)["collector"]
    # Steps 46 to 64 begin with a new episode: one of ten steps, then nine steps.
    assert (collector["policy_step"], collector["lengths"]) == (64, [9])
    # In the replay, the interrupted episode ends truncated, and the next step begins an episode.
    raw = b"".join(path.read_bytes() for path in sorted((tmp_path / "replay").rglob("*.steps")))
    stored = np.frombuffer(raw, step_dtype(EnvSpec({"state": (1,)}, 2, True)))
    # Four episodes of eleven steps each, then steps 44 to 49, with observations 0 to 5.
    assert np.flatnonzero(stored["truncated"]).tolist() == [49]
    assert stored["is_first"][50] and stored["observations/state"][49:51, 0].tolist() == [5, 0]


def test_evaluation_does_not_change_training(compose, tmp_path, untracked):
    config = compose(*TINY, "backbone=gru")
    often, never = make_folder(tmp_path / "often"), make_folder(tmp_path / "never")
    train(replace(config, eval=replace(config.eval, every=8)), often)
    train(config, never)
    assert differing_paths(saved_trainer(often), saved_trainer(never)) == []


def test_weights_are_uploaded_where_the_run_asks_for_it(compose, tmp_path, untracked):
    short = ("backbone=gru", "algo.total_steps=24", "eval.every=20", "eval.open_loop_windows=0")
    train(compose(*TINY, *short, "tracking.upload_checkpoints=true"), tmp_path)
    lines = (tmp_path / "tracking" / "artifacts.jsonl").read_text().splitlines()
    paths = [Path(json.loads(line)["path"]).parts[0] for line in lines]
    assert paths[-2:] == ["checkpoints", "best"]


def test_evaluations_with_one_seed_are_equal_and_leave_the_rng_alone(
    compose, tmp_path, untracked, capsys
):
    config = compose(*TINY, "backbone=gpt2", "eval.greedy=false")
    result = train(config, tmp_path).evaluation
    assert "(mean ± sd of 2 episodes, actions: sampled)" in capsys.readouterr().out
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


def test_damaged_newest_checkpoint_falls_back_to_the_previous_one(compose, tmp_path, untracked):
    config = compose(*TINY, "backbone=gru", "checkpoint.every=32")
    first = train(config, tmp_path)
    newest = max((tmp_path / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-1])
    again = train(replace(config, resume=str(tmp_path)), tmp_path)
    assert saved_trainer(tmp_path)["collector"]["policy_step"] == 64
    assert again.evaluation.returns.tolist() == first.evaluation.returns.tolist()


def test_preempted_run_leaves_a_checkpoint_and_a_killed_status(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    ensure_experiment(uri, "llmdreamer")  # creating the store takes longer than a run waits
    overrides = (*TINY, "backbone=gru", "run_name=stopped", f"tracking.uri={uri}")
    argv = [sys.executable, str(ROOT / "run.py"), *overrides]
    no_end = ["algo.total_steps=1000000", "checkpoint.every=32"]
    process = subprocess.Popen(
        [*argv, *no_end],
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
        process.send_signal(signal.SIGUSR1)
        out, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, "python run.py resume=" in out) == (138, True)
    assert saved_trainer(folder)["collector"]["policy_step"] >= 32
    # The upload process may run a little longer than the run.
    deadline = time.monotonic() + 60
    while (status := [run.info.status for run in mlflow_runs(uri)]) != ["KILLED"]:
        assert time.monotonic() < deadline, status
        time.sleep(0.2)


def test_statistics_cover_every_stored_step(compose, tmp_path, untracked):
    standardize = "algo.world_model.standardize=true"
    config = compose(
        *TINY, "backbone=gru", "env.num_envs=2", standardize, "~env.vector_scale.state"
    )
    train(config, tmp_path)
    agent = saved_trainer(tmp_path)["agent"]
    step = step_dtype(EnvSpec({"state": (4,)}, 2, True))
    files = (tmp_path / "replay").rglob("*.steps")
    stored = np.concatenate([np.fromfile(file, step)["observations/state"] for file in files])
    stored = stored.astype(np.float64)
    count, mean, squares = (
        agent[f"world_model.standardizer.{name}"].numpy()
        for name in ("count", "mean", "squared_deviation")
    )
    assert count == len(stored) > 64  # the last step of an episode counts, too
    np.testing.assert_allclose(mean, stored.mean(0), rtol=1e-9)
    np.testing.assert_allclose(squares / count, stored.var(0), rtol=1e-9)
