"""Evaluate SheepRL's checkpoints with the mode of the policy. time_to_solve.py runs it in SheepRL's venv.

    python peer_evaluate.py FOLDER EPISODES

Prints `checkpoint STEP TIME RETURN` for each checkpoint in FOLDER, oldest first: the time of its file, and
the mean return of new episodes.
"""

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from lightning.fabric import Fabric
from omegaconf import OmegaConf
from sheeprl.algos.dreamer_v3.agent import build_agent
from sheeprl.algos.dreamer_v3.utils import prepare_obs
from sheeprl.utils.utils import dotdict


def main() -> None:
    folder, episodes = Path(sys.argv[1]), int(sys.argv[2])
    fabric = Fabric(accelerator="cpu", devices=1)
    checkpoints = [(int(path.name.split("_")[1]), path) for path in folder.rglob("ckpt_*.ckpt")]
    for step, path in sorted(checkpoints):
        config = OmegaConf.load(path.parents[1] / "config.yaml")
        cfg = dotdict(OmegaConf.to_container(config, resolve=True))
        # The pickle is trusted: this benchmark has just written it.
        state = torch.load(path, weights_only=False)
        mean = np.mean(
            [episode_return(fabric, cfg, state, 10_000 + seed) for seed in range(episodes)]
        )
        print(f"checkpoint {step} {path.stat().st_mtime} {mean}", flush=True)


@torch.no_grad()
def episode_return(fabric: Fabric, cfg: dotdict, state: dict, seed: int) -> float:
    """Return the sum of rewards of one episode."""
    space = gym.spaces.Dict({"state": gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)})
    actions, weights = (2,), (state["world_model"], state["actor"])
    player = build_agent(fabric, actions, False, cfg, space, *weights)[-1]
    player.num_envs = 1
    player.init_states()
    env = gym.make("CartPole-v1")
    observation, _ = env.reset(seed=seed)
    total, is_over = 0.0, False
    while not is_over:
        prepared = prepare_obs(fabric, {"state": observation})
        action = player.get_actions(prepared, greedy=True)
        observation, reward, terminated, truncated, _ = env.step(int(action[0].argmax()))
        total, is_over = total + float(reward), terminated or truncated
    return total


if __name__ == "__main__":
    main()
