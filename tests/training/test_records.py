"""A finished run's records in its folder and in MLflow, and the commands that read them."""

import json
import os
import platform
import re
import shutil
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from documented import documented_metrics
from tiny_run import TINY, mlflow_runs

from llmdreamer.agent.restore import restore_agent
from llmdreamer.checkpoint.files import Checkpoints
from llmdreamer.cli.diagnose import main as diagnose
from llmdreamer.cli.evaluate import main as evaluated
from llmdreamer.cli.imagine import main as imagine
from llmdreamer.config import from_yaml
from llmdreamer.evaluation import open_loop_record as open_loop
from llmdreamer.evaluation.episodes import evaluate
from llmdreamer.tracking import ensure_experiment
from llmdreamer.tracking.spool import read_metrics
from llmdreamer.tracking.store import connect
from llmdreamer.training.loop import train
from llmdreamer.utils.seeds import SeedOffset


@pytest.fixture(scope="module")
def recorded(compose, tmp_path_factory):
    """A finished run: its folder, and its record in MLflow."""
    folder = tmp_path_factory.mktemp("recorded")
    run_dir = folder / "run"
    run_dir.mkdir()
    uri = f"sqlite:///{folder}/mlflow.db"
    # On a busy machine, creating the store takes longer than the end of a run waits.
    ensure_experiment(uri, "llmdreamer")
    before = Path.cwd()
    os.chdir(folder)  # artifacts are stored below the working directory
    try:
        often = [one for one in TINY if one != "eval.every=0"] + ["eval.every=32"]
        train(compose(*often, "seed=3", f"tracking.uri={uri}"), run_dir, ["seed=3"])
    finally:
        os.chdir(before)
    # On a busy machine, the upload continues after the run has ended. The status is uploaded last.
    deadline = time.monotonic() + 60
    while not (runs := [run for run in mlflow_runs(uri) if run.info.status == "FINISHED"]):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (run,) = runs
    return run_dir, uri, run


def test_metrics_table_names_exactly_the_logged_metrics(recorded):
    run_dir = recorded[0]
    logged = {key for row in read_metrics(run_dir / "metrics.jsonl") for key in row.metrics}
    named = documented_metrics()
    # This run has no adapters, no compilation, no images, no GPU and no action values. Evaluations and
    # checkpoints may take no measurable time.
    named -= {"optimizer/lora_gradient_norm", "time/compile_seconds", "behavior/action_value_loss"}
    named -= {"time/evaluation_share", "time/checkpoint_share"}
    named -= {"open_loop/image_error", "open_loop/image_error_repeated"}
    named -= {"system/gpu_memory_bytes", "system/gpu_memory_share"}
    assert logged - {"time/evaluation_share", "time/checkpoint_share"} == named


def test_headline_metrics_repeat_the_evaluations_of_the_run(recorded):
    rows = [row.metrics for row in read_metrics(recorded[0] / "metrics.jsonl")]
    evaluated = [row for row in rows if "eval/return" in row]
    assert len(evaluated) == 2
    assert all(row["return"] == row["eval/return"] for row in evaluated)
    (best,) = [row for row in rows if "return_best" in row]
    assert best["return_best"] == best["eval/best_return"]
    minutes = [row["minutes"] for row in rows if "minutes" in row]
    assert minutes == sorted(minutes) and minutes[-1] > 0
    assert recorded[2].data.tags["mlflow.note.content"].startswith("**return ")


def test_mlflow_has_the_run_finished_with_its_parameters_and_tags(recorded):
    _, _, run = recorded
    assert run.info.status == "FINISHED"
    assert run.data.params["algo.horizon"] == "3"
    tags = {"arm": "scratch", "seed": "3", "backbone": "gpt2", "posterior": "decoupled"}
    tags |= {"overrides": "seed=3", "host": platform.node(), "version.torch": version("torch")}
    assert re.fullmatch("[0-9a-f]{10}", run.data.tags["cell"])
    assert {key: run.data.tags[key] for key in tags} == tags


def test_mlflow_has_every_metrics_record_by_environment_step(recorded):
    run_dir, uri, run = recorded
    rows = [
        row for row in read_metrics(run_dir / "metrics.jsonl") if "world_model/loss" in row.metrics
    ]
    history = connect(uri).get_metric_history(run.info.run_id, "world_model/loss")
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (row.env_step, row.metrics["world_model/loss"]) for row in rows
    ]
    assert rows[-1].env_step == 64


def test_flops_and_time_shares_add_up(recorded):
    rows = [row.metrics for row in read_metrics(recorded[0] / "metrics.jsonl")]
    rows = [row for row in rows if "compute/flops" in row]
    assert rows
    for row in rows:
        assert row["compute/flops"] == row["replay/updates"] * row["compute/flops_per_update"] > 0
        shares = {stage: row[f"time/{stage}_share"] for stage in STAGES}
        assert all(share > 0 for share in shares.values())
        assert sum(shares.values()) <= 1
        # Imagination is slow: its backbone steps run one after the other.
        assert shares["imagination"] > shares["tracking"]


STAGES = ("environment", "replay", "world_model", "imagination", "behavior", "gradient", "tracking")


def test_mlflow_has_the_files_of_the_run(recorded):
    run_dir, uri, run = recorded
    client = connect(uri)
    top = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "environment.json", "returns.png"} <= top
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["id"] == "CartPole-v1" and environment["observations"] == {"state": [4]}
    assert environment["action_size"] == 2 and environment["discrete"]
    # Weights are uploaded only with tracking.upload_checkpoints=true.
    assert top.isdisjoint({"checkpoints", "best"})


def test_best_policy_is_saved_and_can_be_evaluated_again(recorded, capsys):
    run_dir = recorded[0]
    best, config = Checkpoints(run_dir / "best", 1), from_yaml(run_dir / "config.yaml")
    again = evaluate(
        restore_agent(config, best),
        config.env,
        config.eval.final_episodes,
        config.seed + SeedOffset.SELECTION,
        greedy=True,
    )
    assert best.newest(torch.device("cpu"))["mean"] == again.mean
    assert evaluated(["--best", "--episodes=2", str(run_dir)]) == 0
    assert re.match(r"return \d+\.\d{1,2} ± ", capsys.readouterr().out)


def test_saved_configuration_is_that_of_the_run(recorded):
    run_dir, _, _ = recorded
    assert from_yaml(run_dir / "config.yaml").seed == 3


@pytest.mark.parametrize("source", [[], ["--replay"]])
def test_imagine_command_measures_the_world_model_of_a_run(recorded, tmp_path, capsys, source):
    run_dir = recorded[0]
    assert imagine([str(run_dir), "--windows=4", "--samples=2", f"--out={tmp_path}", *source]) == 0
    assert "steps ahead" in capsys.readouterr().out
    result = open_loop.load(tmp_path / open_loop.FILE)
    assert (result.context, result.horizon) == (5, 3) and result.windows[0] <= 4
    assert (tmp_path / "prediction-error.png").exists()
    assert (tmp_path / "imagined-state.svg").exists()


def test_diagnose_command_compares_predictions_with_the_truth(recorded, tmp_path, capsys):
    options = ["--episodes=2", "--states=2", "--branches=2", f"--out={tmp_path}"]
    assert diagnose([str(recorded[0]), *options]) == 0
    assert "true advantage" in capsys.readouterr().out
    assert (tmp_path / "critic.png").exists() and (tmp_path / "predicted-ends.csv").exists()


def test_open_loop_evaluation_is_saved_in_the_run_and_in_mlflow(recorded):
    run_dir, uri, run = recorded
    result = open_loop.load(run_dir / open_loop.FILE)
    (row,) = [
        r for r in read_metrics(run_dir / "metrics.jsonl") if "open_loop/vector_error" in r.metrics
    ]
    assert row.metrics == result.metrics()
    names = [item.path for item in connect(uri).list_artifacts(run.info.run_id)]
    assert open_loop.FILE in names


@pytest.mark.parametrize(
    ("typed", "said"),
    [(["--horizon=0"], "--horizon 0: must be >= 1"), (["--replay"], "missing replay")],
)
def test_imagine_command_reports_mistakes_in_one_line(recorded, tmp_path, capsys, typed, said):
    shutil.copytree(recorded[0] / "checkpoints", tmp_path / "checkpoints")
    shutil.copy(recorded[0] / "config.yaml", tmp_path)
    assert imagine([str(tmp_path), *typed]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
