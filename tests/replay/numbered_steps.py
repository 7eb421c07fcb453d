"""Steps whose values are their position: observation [env, step], reward = step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from llmdreamer.replay import SequenceReplay
from llmdreamer.types import EnvSpec, TimeStep

SPEC = EnvSpec(observations={"state": (2,)}, action_size=2, discrete=True)


def replay(folder: Path, n: int = 1, capacity: int = 1000, length: int = 4, **kw: Any):
    return SequenceReplay(folder / "replay", SPEC, n, capacity, length, seed=0, **kw)


def make_step(numbers: list[int], episode: int = 5) -> tuple[TimeStep, np.ndarray]:
    """Return step `numbers[i]` of each environment i.

    Episodes have `episode` steps and end alternately by termination and truncation. The action after step r
    is one-hot r % 2.
    """
    n, r = len(numbers), np.array(numbers)
    last, odd = r % episode == episode - 1, (r // episode) % 2 == 1
    step = TimeStep(
        observations={"state": np.stack([np.arange(n), r], 1).astype(np.float32)},
        reward=r.astype(np.float32),
        is_first=r % episode == 0,
        terminated=last & ~odd,
        truncated=last & odd,
    )
    return step, np.eye(2, dtype=np.float32)[r % 2] * ~last[:, None]


def fill(buffer: SequenceReplay, start: int, stop: int, n: int = 1, episode: int = 5) -> None:
    for number in range(start, stop):
        buffer.append(*make_step([number] * n, episode))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.steps"))}
