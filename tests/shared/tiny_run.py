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


def start_idle_uploader(folder: Path, uri: str) -> subprocess.Popen[bytes]:
    """Replace the upload process, which takes longer to start than a tiny run lasts."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def saved_trainer(run_dir: Path) -> dict:
    """Return the trainer's state in the newest checkpoint."""
    return Checkpoints(run_dir / "checkpoints", 2).newest(torch.device("cpu"))["trainer"]


def metric_records(run_dir: Path) -> list:
    """Return all logged metrics except times and system load, which differ between equal runs."""
    varying = ("time/", "system/", "minutes")
    records = [
        (record.env_step, {k: v for k, v in record.metrics.items() if not k.startswith(varying)})
        for record in read_metrics(run_dir / "metrics.jsonl")
    ]
    return [record for record in records if record[1]]


def folder_contents(folder: Path) -> dict[str, bytes]:
    """Return the bytes of every file below a folder, by relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def differing_paths(left, right, path=""):
    """Return the paths at which two checkpoints are not equal to the bit."""
    if isinstance(left, dict):
        if left.keys() != right.keys():
            return [f"{path}: {sorted(map(str, left.keys() ^ right.keys()))}"]
        return [
            item for key in left for item in differing_paths(left[key], right[key], f"{path}/{key}")
        ]
    if isinstance(left, list | tuple):
        if len(left) != len(right):
            return [path]
        pairs = enumerate(zip(left, right, strict=True))
        return [item for i, (a, b) in pairs for item in differing_paths(a, b, f"{path}/{i}")]
    if isinstance(left, torch.Tensor):
        return [] if torch.equal(left, right) else [path]
    return [] if left == right else [path]


def mlflow_runs(uri: str) -> list:
    """Return all runs of an MLflow store."""
    client = connect(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))
