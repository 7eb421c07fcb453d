"""The MLflow run of a sweep, with real SQLite stores and a real Hydra multirun."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf

from llmdreamer.sweep.hydra_callback import ParentRunCallback
from llmdreamer.sweep.summary import SweepSummary
from llmdreamer.tracking import RunInfo, Tracker, ensure_experiment
from llmdreamer.tracking.parent import PARENT_VARIABLE, tag_run
from llmdreamer.tracking.store import connect
from llmdreamer.tracking.upload_loop import sync

EXPERIMENT = "test"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    ensure_experiment(uri, EXPERIMENT)
    return uri


@pytest.fixture
def config(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DictConfig:
    monkeypatch.setenv(PARENT_VARIABLE, "ID of another sweep")
    monkeypatch.setattr(sys, "argv", ["run.py", "-m", "seed=1,2", "hub.hf_token=abc"])
    return OmegaConf.create(
        {
            "hydra": {"sweep": {"dir": str(tmp_path / "2026-01-02" / "10-11-12")}},
            "tracking": {"uri": uri, "experiment": EXPERIMENT},
            "objective": "eval/return",
        }
    )


def record_job(uri: str, overrides: str, value: float | None, status: str) -> None:
    """Record a job's run as a child of the parent in the environment variable."""
    client = connect(uri)
    tags = {"mlflow.parentRunId": os.environ[PARENT_VARIABLE], "overrides": overrides}
    run = client.create_run(
        ensure_experiment(uri, EXPERIMENT), run_name=f"run {overrides}", tags=tags
    )
    if value is not None:
        client.log_metric(run.info.run_id, "eval/return", value - 1, step=1)
        client.log_metric(run.info.run_id, "eval/return", value, step=2)
    client.set_terminated(run.info.run_id, status)


def test_sweep_is_recorded_as_a_run_with_the_results_of_its_jobs(uri: str, config: DictConfig):
    callback = ParentRunCallback()
    callback.on_multirun_start(config)
    run_id = os.environ[PARENT_VARIABLE]
    record_job(uri, "seed=1", 10.0, "FINISHED")
    record_job(uri, "seed=2", 12.5, "FINISHED")
    callback.on_multirun_end(config)

    run = connect(uri).get_run(run_id)
    assert run.info.run_name == "2026-01-02/10-11-12"
    assert run.info.status == "FINISHED"
    assert run.data.tags["command"] == "python run.py -m seed=1,2 'hub.hf_token=***'"
    assert "| run seed=2 | seed=2 | 12.5 | FINISHED |" in run.data.tags["mlflow.note.content"]
    table = Path(config.hydra.sweep.dir) / "results.csv"
    assert table.read_text().splitlines() == [
        "name,overrides,eval/return,status",
        "run seed=1,seed=1,10.0,FINISHED",
        "run seed=2,seed=2,12.5,FINISHED",
    ]
    assert [file.path for file in connect(uri).list_artifacts(run_id)] == ["results.csv"]
    assert PARENT_VARIABLE not in os.environ


def test_own_sweep_is_recorded_with_its_summary_and_figures(uri: str, config: DictConfig):
    callback = ParentRunCallback()
    callback.begin(config)
    run_id = os.environ[PARENT_VARIABLE]
    summary = SweepSummary({"best_value": 3.0}, {"best_params": "lr=1"}, "**Best 3**")
    callback.end(config, lambda: summary, lambda folder: (folder / "a.png").write_bytes(b""))
    client = connect(uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.data.metrics == {"best_value": 3.0}
    assert run.data.tags["best_params"] == "lr=1"
    assert run.data.tags["mlflow.note.content"].startswith("**Best 3**\n\nSweep by\n\n    python ")
    assert [file.path for file in client.list_artifacts(run_id, "figures")] == ["figures/a.png"]


def test_sweep_without_a_summary_is_recorded_with_its_end(uri: str, config: DictConfig, caplog):
    callback = ParentRunCallback()
    callback.begin(config)
    run_id = os.environ[PARENT_VARIABLE]
    with caplog.at_level(logging.WARNING, "llmdreamer"):
        callback.end(config, lambda: 1 / 0, lambda folder: 1 / 0)
    assert connect(uri).get_run(run_id).info.status == "FINISHED"
    assert len(caplog.records) == 2


def test_job_that_failed_without_a_run_fails_the_sweep(uri: str, config: DictConfig):
    callback = ParentRunCallback()
    callback.on_multirun_start(config)
    run_id = os.environ[PARENT_VARIABLE]
    record_job(uri, "seed=1", 10.0, "FINISHED")
    failed = JobReturn(overrides=["seed=2"], status=JobStatus.FAILED)
    callback.on_job_end(config, failed)
    callback.on_multirun_end(config)
    run = connect(uri).get_run(run_id)
    assert run.info.status == "FAILED"
    assert "| - | seed=2 |  | FAILED |" in run.data.tags["mlflow.note.content"]


def test_failed_job_of_another_process_fails_the_sweep(uri: str, config: DictConfig):
    callback = ParentRunCallback()
    callback.on_multirun_start(config)
    run_id = os.environ[PARENT_VARIABLE]
    record_job(uri, "seed=1", None, "FAILED")
    callback.on_multirun_end(config)
    assert connect(uri).get_run(run_id).info.status == "FAILED"


def test_interrupted_sweep_is_recorded_as_killed(uri: str, config: DictConfig):
    callback = ParentRunCallback()
    callback.on_multirun_start(config)
    run_id = os.environ[PARENT_VARIABLE]
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        callback.on_multirun_end(config)
    assert connect(uri).get_run(run_id).info.status == "KILLED"


def test_restarted_sweep_reopens_its_run(uri: str, config: DictConfig):
    ids = []
    for _ in range(2):
        callback = ParentRunCallback()
        callback.on_multirun_start(config)
        ids.append(os.environ[PARENT_VARIABLE])
        assert connect(uri).get_run(ids[-1]).info.status == "RUNNING"
        callback.on_multirun_end(config)
    assert ids[0] == ids[1]


@pytest.mark.parametrize("bad", ["http://127.0.0.1:1", "./mlruns"])
def test_failing_store_costs_the_sweep_one_warning_line(
    config: DictConfig, caplog: pytest.LogCaptureFixture, bad: str
):
    config.tracking.uri = bad
    callback = ParentRunCallback()
    with caplog.at_level(logging.WARNING, "llmdreamer"):
        callback.on_multirun_start(config)
        callback.on_multirun_end(config)
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("llmd")]
    assert "parent run" in line
    assert "\n" not in line
    assert PARENT_VARIABLE not in os.environ


APP = """
import os
import hydra
from llmdreamer.tracking import RunInfo, Tracker, ensure_experiment
from llmdreamer.tracking.store import connect
from llmdreamer.tracking.upload_loop import sync


TRUSTED = ["llmdreamer.sweep.hydra_callback.ParentRunCallback"]


@hydra.main(version_base=None, config_path=".", config_name="config", execution_whitelist=TRUSTED)
def main(config):
    if config.seed == 2:
        raise ValueError("seed 2 fails")
    client = connect(config.tracking.uri)
    tags = {"mlflow.parentRunId": os.environ["LLMDREAMER_PARENT_RUN"], "overrides": "seed=1"}
    run = client.create_run(ensure_experiment(config.tracking.uri, "test"), run_name="first", tags=tags)
    client.set_terminated(run.info.run_id)


main()
"""

CONFIG = """
hydra:
  callbacks:
    parent_run:
      _target_: llmdreamer.sweep.hydra_callback.ParentRunCallback
seed: 0
objective: eval/return
tracking: {uri: null, experiment: test}
"""


def test_hydra_calls_the_callback_in_a_multirun(uri: str, tmp_path: Path):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "config.yaml").write_text(CONFIG.replace("null", uri))
    command = [sys.executable, "app.py", "-m", "seed=1,2", "hydra.sweep.dir=sweep"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "Callback" not in done.stderr, done.stderr
    client = connect(uri)
    (run,) = client.search_runs(
        [ensure_experiment(uri, EXPERIMENT)], "tags.command LIKE 'python app.py%'", max_results=2
    )
    assert run.info.run_name == "sweep"
    assert run.info.status == "FAILED"
    assert (tmp_path / "sweep" / "results.csv").read_text().splitlines()[1:] == [
        "first,seed=1,,FINISHED",
        "-,seed=2,,FAILED",
    ]


def test_tag_set_after_the_end_is_uploaded_with_the_rest(uri: str, tmp_path: Path):
    """The driver tags a pruned run after its end, and its store may be unreachable until then."""
    folder = tmp_path / "run"
    tracker = Tracker.start(folder, RunInfo("late", {}, {}), "http://127.0.0.1:1", EXPERIMENT)
    tracker.finish("KILLED", timeout=120)  # on a busy machine the uploader holds the lock for long
    tag_run(folder, "http://127.0.0.1:1", "pruned", "at env step 52")
    sync(folder, uri)
    client = connect(uri)
    (run,) = client.search_runs([ensure_experiment(uri, EXPERIMENT)], "tags.pruned LIKE 'at%'")
    assert (run.info.run_name, run.info.status) == ("late", "KILLED")
    tag_run(folder, uri, "pruned", "at env step 53")
    assert client.get_run(run.info.run_id).data.tags["pruned"] == "at env step 53"
