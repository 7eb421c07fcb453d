"""Options of the smallest run that learns, and functions that compare two such runs."""

import subprocess
from pathlib import Path

import torch

from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.tracking.spool import read_metrics
from llmdreamer.tracking.store import connect

TINY = (
    "threads=1",
    "algo.total_steps=64",
    "algo.learning_starts=16",
    "algo.per_rank_batch_size=4",
    "algo.per_rank_sequence_length=8",
    "algo.imag_starts=2",
    "algo.horizon=3",
    "algo.dense_units=16",
    "algo.world_model.stochastic_size=4",
    "algo.world_model.discrete_size=4",
    "algo.world_model.recurrent_model.dense_units=16",
    "algo.world_model.transition_model.hidden_size=16",
    "algo.world_model.representation_model.hidden_size=16",
    "algo.world_model.hf_model.seq_len=8",
    "algo.optimizer.warmup=4",
    "eval.every=0",
    "eval.final_episodes=2",
    "tracking.log_every=5",
)


def wait_only(folder: Path, uri: str) -> subprocess.Popen[bytes]:
    """Replace the upload process, which takes longer to start than a tiny run lasts."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)


def saved(run_dir: Path) -> dict:
    """Return the trainer's state in the newest checkpoint."""
    return Checkpoints(run_dir / "checkpoints", 2).newest(torch.device("cpu"))["trainer"]


def rows(run_dir: Path) -> list:
    """Return all logged metrics except times and system load, which differ between equal runs."""
    varying = ("time/", "system/")
    records = [
        (record.env_step, {k: v for k, v in record.metrics.items() if not k.startswith(varying)})
        for record in read_metrics(run_dir / "metrics.jsonl")
    ]
    return [record for record in records if record[1]]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def differing(left, right, path=""):
    """Paths at which two checkpoints are not the same bit for bit."""
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return [f"{path}: {sorted(map(str, left.keys() ^ right.keys()))}"]
        return [at for key in left for at in differing(left[key], right[key], f"{path}/{key}")]
    if isinstance(left, list | tuple):
        if len(left) != len(right):
            return [path]
        pairs = enumerate(zip(left, right, strict=True))
        return [at for i, (a, b) in pairs for at in differing(a, b, f"{path}/{i}")]
    if isinstance(left, torch.Tensor):
        return [] if torch.equal(left, right) else [path]
    return [] if left == right else [path]


def runs_in(uri: str) -> list:
    """All that an MLflow store has runs of."""
    client = connect(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))
