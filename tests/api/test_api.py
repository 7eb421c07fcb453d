"""The Python interface: the lines of the README train a run and act with its policy."""

import os

import gymnasium as gym
import pytest
from refusals import refused
from tiny_run import TINY, start_idle_uploader

from llmdreamer.api import ConfigError, compose, load_policy, train
from llmdreamer.cli.evaluate import main as evaluate
from llmdreamer.tracking import tracker


@pytest.fixture
def idle_upload(monkeypatch):
    monkeypatch.setattr(tracker, "_start_upload_process", start_idle_uploader)


def test_composed_configuration_is_trained_loaded_and_acts(
    tmp_path, monkeypatch, idle_upload, capsys
):
    monkeypatch.chdir(tmp_path)
    run = train(compose("env=cartpole", "backbone=gru", *TINY))
    assert run.folder.parent.name == "outputs"
    assert 8 <= run.mean_return <= 500
    policy = load_policy(run.folder)
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        observation, *_ = env.step(policy.act(observation))
    capsys.readouterr()
    assert evaluate(["latest", "--episodes", "1"]) == 0
    assert str(run.folder) in capsys.readouterr().err


def test_wrong_value_is_refused_as_on_the_command_line():
    with refused(ConfigError, "algo.horizon", "0"):
        compose("algo.horizon=0")


def test_training_in_a_folder_of_another_run_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "mine" / "best").mkdir(parents=True)
    (tmp_path / "outputs" / "mine" / "best" / "step.pt").touch()
    with refused(ConfigError, "outputs/mine", "run_name"):
        train(compose("run_name=mine"))
    assert os.listdir(tmp_path / "outputs" / "mine") == ["best"]


def test_latest_without_a_run_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert evaluate(["latest"]) == 2
    assert "no run below" in capsys.readouterr().err
