"""Run a gradient step of SheepRL for each input line; print its seconds. peers.py runs it in SheepRL's venv.

python peer_sheeprl.py THREADS BATCH LENGTH [override ...]
"""

import sys
import time

import gymnasium as gym
import hydra
import numpy as np
import torch
from lightning.fabric import Fabric
from sheeprl.algos.dreamer_v3.agent import build_agent
from sheeprl.algos.dreamer_v3.dreamer_v3 import train
from sheeprl.algos.dreamer_v3.utils import Moments
from sheeprl.utils.utils import dotdict


def main() -> None:
    threads, batch, length = (int(number) for number in sys.argv[1:4])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    overrides = [
        "exp=dreamer_v3",
        "algo=dreamer_v3_XS",
        "env=gym",
        "env.id=CartPole-v1",
        "algo.cnn_keys.encoder=[]",
        "algo.cnn_keys.decoder=[]",
        "algo.mlp_keys.encoder=[state]",
        "algo.mlp_keys.decoder=[state]",
        f"algo.per_rank_batch_size={batch}",
        f"algo.per_rank_sequence_length={length}",
        *sys.argv[4:],
    ]
    with hydra.initialize_config_module("sheeprl.configs", version_base="1.3"):
        composed = hydra.compose("config", overrides=overrides)
    cfg = dotdict(hydra.core.utils.OmegaConf.to_container(composed, resolve=True))
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    space = gym.spaces.Dict({"state": gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)})
    agent = build_agent(fabric, (2,), False, cfg, space)[:4]
    parts = ("world_model", "actor", "critic")
    optimizers = [
        fabric.setup_optimizers(
            hydra.utils.instantiate(
                cfg.algo[name].optimizer, params=module.parameters(), _convert_="all"
            )
        )
        for name, module in zip(parts, agent, strict=False)
    ]
    norm = cfg.algo.actor.moments
    moments = Moments(norm.decay, norm.max, norm.percentile.low, norm.percentile.high)
    generator = torch.Generator().manual_seed(1)
    choice = torch.randint(2, (length, batch), generator=generator)
    first = (torch.rand(length, batch, 1, generator=generator) < 0.02).float()
    data = {
        "state": torch.randn(length, batch, 4, generator=generator),
        "actions": torch.nn.functional.one_hot(choice, 2).float(),
        "rewards": torch.ones(length, batch, 1),
        "is_first": first,
        "terminated": torch.cat([first[1:], torch.zeros(1, batch, 1)]),
    }
    count = sum(p.numel() for module in agent[:3] for p in module.parameters())
    print(f"parameters {count}", flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        train(fabric, *agent, *optimizers, dict(data), None, cfg, False, (2,), moments)
        print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
