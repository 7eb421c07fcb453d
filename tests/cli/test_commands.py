"""Commands of the README, run with budgets of seconds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import assert_names

from llmdreamer.tracking.store import connect

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
SHORT = (
    "threads=1",
    "algo.total_steps=16",
    "algo.horizon=2",
    "algo.per_rank_batch_size=2",
    "algo.per_rank_sequence_length=4",
    "eval.every=0",
    "eval.final_episodes=1",
    "eval.open_loop_windows=0",
)


def typed(folder, *argv):
    return subprocess.run(
        [sys.executable, *argv],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,  # on a busy machine; a minute on an idle one
        check=False,
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Return the folder and the output of a sweep of two runs, with and without LoRA."""
    folder = tmp_path_factory.mktemp("swept")
    argv = ["-m", "model=XS", "peft=true,false", "algo.imag_starts=2", *SHORT]
    done = typed(folder, str(ROOT / "run.py"), *argv)
    assert (done.returncode, done.stderr) == (0, "")
    return folder, done.stdout


def test_sweep_records_its_runs_under_one_parent(swept):
    folder, out = swept
    client = connect(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    assert sorted((c.data.tags["arm"], c.data.tags["seed"]) for c in children) == [
        ("random-frozen-lora", "0"),
        ("scratch", "0"),
    ]
    assert {c.data.tags["sweep"] for c in [parent, *children]} == {parent.info.run_name}
    assert sorted(c.data.tags["trial"] for c in children) == [*map(str, range(len(children)))]
    assert {c.data.tags["mlflow.source.git.commit"] for c in children} == {
        parent.data.tags["mlflow.source.git.commit"]
    }
    assert "| finished |" in parent.data.tags["mlflow.note.content"]
    assert len(re.findall(r"^start ", out, re.MULTILINE)) == 2


def test_sweep_writes_a_table_of_results(swept):
    folder, _ = swept
    (table,) = folder.glob("outputs/sweeps/*/results.csv")
    head, *rows = table.read_text().splitlines()
    assert head == "label,seed,state,env_step,eval/return,folder,overrides,cause,number,arm,params"
    assert len(rows) == 2
    assert all(",finished,16," in row for row in rows)


def test_evaluate_prints_mean_and_deviation(swept):
    folder, _ = swept
    run_dir = min(folder.glob("outputs/cells/*_seed0"))
    done = typed(folder, "-m", "llmdreamer", "evaluate", str(run_dir), "--episodes", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(
        r"return \d+\.\d{1,2} ± \d+\.\d{1,2} \(mean ± sd of 2 episodes\)\n", done.stdout
    )


def test_evaluate_without_a_checkpoint_is_refused_in_one_line(tmp_path):
    done = typed(tmp_path, "-m", "llmdreamer", "evaluate", "nowhere")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert_names(done.stderr, "nowhere", "checkpoint")


def test_command_of_the_seed_document_finishes(tmp_path):
    # A full-size model, so only one update.
    argv = ("exp=llm_dreamer_v3", "run_name=seed", "algo.learning_starts=15", *SHORT)
    done = typed(tmp_path, str(ROOT / "main.py"), *argv)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^last policy        \d+\.\d{1,2} ± ", done.stdout, re.MULTILINE)
    written = list((tmp_path / "outputs/seed/checkpoints").glob("step-000000000016-*.pt"))
    assert written, done.stdout  # 0.54 GB; the output says if the disk is full
