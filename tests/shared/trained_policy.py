"""The folder of a run that has ended, without training, and episodes of its policy."""

import os
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

from llmdreamer.agent.agent import Agent, make_agent
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.config import to_yaml
from llmdreamer.envs import make_vector

CHECKPOINT = Path(os.environ["LLMDREAMER_ROOT"]) / "tests" / "data" / "mamba-128x4-bytes"
ARMS = {
    "gpt2": ["backbone=gpt2"],
    "reference": ["backbone=gru", "posterior=coupled"],
    "pretrained-lora": [
        *("backbone=mamba", "pretrained=true", "peft=true", f"backbone.path={CHECKPOINT}"),
    ],
}


def left_behind(folder, config) -> Agent:
    """The folder of a run that has ended: configuration and checkpoint; its agent."""
    torch.manual_seed(0)
    envs = make_vector(config.env, 1, 0)
    envs.close()
    agent = make_agent(config, envs.spec)
    rng = np.random.default_rng(0)  # statistics that an export without them would lack
    agent.world_model.standardizer.update(
        [{key: rng.normal(0.1, 0.3, (9, *shape)) for key, shape in envs.spec.observations.items()}]
    )
    with torch.no_grad():
        for parameter in agent.behavior.actor.parameters():
            parameter.normal_()  # a fresh actor does the same whatever it sees
        for name, parameter in agent.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    Checkpoints(folder / "checkpoints", 1).save({"trainer": {"agent": agent.state_dict()}}, 1)
    (folder / "config.yaml").write_text(to_yaml(config))
    return agent


def run_episodes(policy, env_id: str, seed: int) -> list:
    env = gym.make(env_id)
    observation, _ = env.reset(seed=seed)
    policy.reset()
    episode, over = [], False
    while not over:
        action = policy.act(observation)
        observation, reward, terminated, truncated, _ = env.step(action)
        episode.append((action, reward))
        over = terminated or truncated
    return episode
