"""A run of two processes under torchrun: separate random states and replays, one record."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from refusals import assert_names

import run
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.cli import rundir
from llmdreamer.tracking.spool import read_metrics

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
RUN = (
    "threads=1",
    "backbone=gru",
    "run_name=two",
    "replay_ratio=0.2",
    "algo.total_steps=72",
    "algo.learning_starts=32",
    "algo.per_rank_batch_size=2",
    "algo.per_rank_sequence_length=8",
    "algo.imag_starts=2",
    "algo.horizon=3",
    "algo.dense_units=16",
    "eval.every=60",
    "eval.episodes=1",
    "eval.final_episodes=1",
    "tracking.log_every=2",
)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return the working directory in which two processes have trained."""
    folder = tmp_path_factory.mktemp("two")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, str(ROOT / "run.py"), *RUN],
        cwd=folder,
        env=os.environ | {"TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("last policy ") == 1
    return folder


def test_run_of_two_processes_is_recorded_once(two):
    assert [path.name for path in (two / "outputs").iterdir()] == ["two"]
    rows = list(read_metrics(two / "outputs" / "two" / "metrics.jsonl"))
    steps = [row.env_step for row in rows]
    assert steps == sorted(steps) and steps[-1] == 72
    # 40 steps after the prefill are 8 batches at ratio 0.2. An update uses two batches: 4 updates.
    last = [row.metrics for row in rows if "replay/updates" in row.metrics][-1]
    assert last["replay/updates"] == 4
    assert last["replay/ratio"] == pytest.approx(0.2)
    assert last["replay/train_ratio"] == pytest.approx(0.2 * 2 * 8)
    assert sum("eval/return" in row.metrics for row in rows) == 2


def test_two_processes_have_separate_random_states_and_replays(two):
    folder = two / "outputs" / "two"
    state = Checkpoints(folder / "checkpoints", 2).newest(torch.device("cpu"))["trainer"]
    (other,) = state["others"]
    assert not torch.equal(state["torch_rng"], other["torch_rng"])
    assert (folder / "replay").is_dir() and (folder / "replay-1").is_dir()
    states = (state, other)
    observed = [each["collector"]["time_step"]["observations"]["state"] for each in states]
    assert not torch.equal(*observed)


def test_resume_with_fewer_processes_is_refused(two, monkeypatch, capsys):
    monkeypatch.chdir(two)
    monkeypatch.setenv("LLMDREAMER_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "argv", ["run.py", "resume=outputs/two", "algo.total_steps=80"])
    assert run.main() == 2
    assert_names(capsys.readouterr().err, "of 2 process", "has 1", "torchrun --nproc-per-node")


def test_only_the_first_process_chooses_the_run_folder(command, training, monkeypatch, tmp_path):
    variables = {"TORCHELASTIC_RUN_ID": "test", "WORLD_SIZE": "2"}
    variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rundir.tempfile, "tempdir", str(tmp_path / "own"))
    (tmp_path / "own").mkdir()
    for rank, parent in (("0", tmp_path / "outputs"), ("1", tmp_path / "own")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert command("run_name=x")[0] == 0
        assert training.runs[-1][1].parent == parent
