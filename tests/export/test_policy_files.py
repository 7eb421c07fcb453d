"""What is exported and registered acts as the agent did, where nothing of its run is known."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import assert_names
from trained_policy import ARMS, CHECKPOINT, left_behind, run_episodes

from llmdreamer.cli.register import main as register
from llmdreamer.cli.sync import main as tracking
from llmdreamer.config import from_yaml
from llmdreamer.evaluation.episodes import evaluate
from llmdreamer.export.policy import Policy, export
from llmdreamer.tracking.record import RunFiles, RunRecord, save
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.seeds import SeedOffset

torch.set_num_threads(1)
ROOT = Path(os.environ["LLMDREAMER_ROOT"])


@pytest.mark.parametrize("arm", ARMS)
def test_exported_policy_reproduces_the_evaluation_episodes(arm, compose, tmp_path):
    config = compose(*ARMS[arm], "env.max_episode_steps=40")
    agent = left_behind(tmp_path, config)
    export(tmp_path, tmp_path / "policy")
    policy = Policy.load(tmp_path / "policy")
    measured = evaluate(agent, config.env, 2, 0, greedy=True)
    # Seeds are spawned of the vector's: those of its two environments.
    seeds = np.random.SeedSequence(SeedOffset.EVALUATION).spawn(2)
    for seed, expected in zip(seeds, measured.lengths, strict=True):
        episode = run_episodes(policy, "CartPole-v1", int(seed.generate_state(1)[0]) >> 1)
        assert min(len(episode), 40) == expected


def test_exported_pretrained_policy_loads_without_its_checkpoint(compose, tmp_path):
    left_behind(tmp_path, compose(*ARMS["pretrained-lora"]))
    files = export(tmp_path, tmp_path / "policy")
    kept = from_yaml(files["config.yaml"])
    hf = kept.algo.world_model.hf_model
    assert kept.backbone.path is None and not hf.from_pretrained
    assert hf.peft  # its adapters are still its own
    assert str(CHECKPOINT) not in files["config.yaml"].read_text()


def test_continuous_policy_acts_within_the_action_bounds(compose, tmp_path):
    config = compose("backbone=gru", "env=pendulum", "env.max_episode_steps=3")
    left_behind(tmp_path, config)
    export(tmp_path, tmp_path / "policy")
    episode = run_episodes(Policy.load(tmp_path / "policy"), "Pendulum-v1", 0)[:3]
    actions = np.array([action for action, _ in episode])
    assert actions.shape == (3, 1) and actions.dtype == np.float32
    assert (np.abs(actions) <= 2).all() and np.abs(actions).max() > 0


def test_policy_acts_with_the_evaluation_mode_of_its_run(compose, tmp_path):
    left_behind(tmp_path, compose("backbone=gru", "eval.greedy=false"))
    export(tmp_path, tmp_path / "policy")
    policy = Policy.load(tmp_path / "policy")
    first = np.zeros(4, np.float32)
    chosen = []
    for _ in range(30):
        policy.reset()
        chosen.append(int(policy.act(first)))
    assert set(chosen) == {0, 1}  # drawn: the policy is not trained


def test_policy_refuses_a_wrong_observation(compose, tmp_path):
    left_behind(tmp_path, compose("backbone=gru"))
    export(tmp_path, tmp_path / "policy")
    policy = Policy.load(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"shape \(3,\), not \(4,\)"):
        policy.act(np.zeros(3, np.float32))


def test_export_without_checkpoint_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="missing checkpoint"):
        export(tmp_path, tmp_path / "policy")


SIGNS = [
    *("backbone=gru", "algo.agent=llmdreamer_example.signs.SignsAgent"),
    *("+algo.options.positive_weight=0.5", "trust=[llmdreamer_example]"),
]
ACT_IN_ANOTHER_PROCESS = """
import json, sys
import gymnasium as gym, mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
lengths = []
for seed in (int(word) for word in sys.argv[3:]):
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=seed)
    steps, over = 0, False
    while not over:
        action = model.predict(observation, params={"reset": steps == 0})
        observation, _, terminated, truncated, _ = env.step(action)
        steps, over = steps + 1, terminated or truncated
    lengths.append(steps)
ours, theirs = (sys.modules[name].__file__ for name in ("llmdreamer", "llmdreamer_example.signs"))
print(json.dumps({"lengths": lengths, "code": ours, "theirs": theirs}))
"""


def test_registered_policy_acts_the_same_in_another_process(compose, tmp_path, capsys):
    """MLflow gives back what a process needs that knows neither the run, nor this package, nor that of
    the variant that was trained."""
    run_dir, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    config = compose(*SIGNS)
    agent = left_behind(run_dir, config)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    wanted = RunRecord(uri, "test", "run", {}, {"arm": "gru"}, time.time(), "FINISHED", time.time())
    save(wanted, RunFiles(run_dir).run_record)
    trusting = [str(run_dir), "pole", "--trust", "llmdreamer_example"]
    assert register(trusting) == 1  # it is in no store yet
    assert "llmdreamer sync" in capsys.readouterr().err
    assert tracking([str(run_dir)]) == 0
    capsys.readouterr()
    assert register(trusting[:2]) == 2
    line = capsys.readouterr().err
    assert "is code of another package" in line and line.count("\n") == 1
    assert register(trusting) == 0
    assert "models:/pole/1" in capsys.readouterr().out
    seeds = [
        int(child.generate_state(1)[0]) >> 1
        for child in np.random.SeedSequence(SeedOffset.EVALUATION).spawn(2)
    ]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            ACT_IN_ANOTHER_PROCESS,
            uri,
            "models:/pole/1",
            *map(str, seeds),
        ],
        cwd=other,
        env=environment | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["lengths"] == evaluate(agent, config.env, 2, 0, greedy=True).lengths.tolist()
    assert found["code"].endswith("policy/code/llmdreamer/__init__.py")
    assert found["theirs"].endswith("policy/code/llmdreamer_example/signs.py")
    assert not list(tmp_path.rglob("*.pkl"))


def test_missing_trusted_package_is_a_config_error(compose, tmp_path, capsys):
    left_behind(tmp_path, compose("backbone=gru"))
    assert register([str(tmp_path), "pole", "--trust", "nowhere"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert_names(message, "--trust nowhere", "package nowhere")


@pytest.mark.parametrize("name", ["", "a/b", "a:b"])
def test_invalid_model_name_is_a_config_error(name, tmp_path, capsys):
    assert register([str(tmp_path), name]) == 2
    line = capsys.readouterr().err
    assert "a model name may" in line and line.count("\n") == 1
