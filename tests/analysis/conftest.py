"""A store of recorded runs, uploaded by the real `sync`, with typical failures among them.

`data/` holds the spools of real runs, which the store holds as they ended. Copies of them add a failed, a
killed, a pruned and a running run, and one run that was run twice. Another copy was killed and resumed
without a record of what MLflow already had. For that run, the store holds some steps twice, and some
values of the attempt that was discarded.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from recorded import DATA, EXPERIMENT, Recorded, add, first_attempt, resume

from llmdreamer.analysis.load import RETURN, Records, load
from llmdreamer.cli.sync import main as sync
from llmdreamer.tracking.parent import start_parent
from llmdreamer.tracking.store import connect


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    root = tmp_path_factory.mktemp("recorded")
    uri = f"sqlite:///{root}/mlflow.db"
    sweep = root / "2026-01-02" / "10-11-12"
    sweep.mkdir(parents=True)
    parent = start_parent(
        sweep, uri, EXPERIMENT, {"sweep": "a"}, "Sweep by\n\n    run.py -m seed=0"
    )
    store = Recorded(uri, parent.run_id)
    for source in sorted(path for path in DATA.iterdir() if path.is_dir()):
        tags = {"mlflow.parentRunId": parent.run_id} if source.name.startswith("small") else {}
        add(store, root, source.name, source.name, tags=tags)
    add(store, root, "failed", "small_gru_2", length=40, status="FAILED", seed=7)
    add(store, root, "killed", "small_gru_1", length=45, status=None, seed=8)
    pruned = {"pruned": "at env step 200"}
    add(store, root, "pruned", "small_gpt2_2", length=50, status="KILLED", seed=5, tags=pruned)
    add(store, root, "running", "small_gpt2_0", length=30, status=None, seed=6)
    add(store, root, "repeated", "small_gpt2_1", length=60, seed=0, started_earlier=5000.0)
    first_attempt(store, root)
    assert sync([str(root), "--uri", uri]) == 0
    resume(store)
    assert sync([str(store.folders["resumed"]), "--uri", uri]) == 0
    connect(uri).update_run(store.run_id("running"), status="RUNNING")
    return store


@pytest.fixture(scope="session")
def records(recorded: Recorded) -> Records:
    return load(recorded.uri, EXPERIMENT)


@pytest.fixture
def arms() -> Callable[..., Records]:
    """Create records from (arm, knobs, env, seed, return), with two evaluations for each run."""

    def make(*rows: tuple[str, dict[str, str], str, int, float]) -> Records:
        runs, curves = [], []
        for number, (label, knobs, env, seed, value) in enumerate(rows):
            defaults = {"backbone": "gpt2", "size": "S", "pretrained": "false", "peft": "false"}
            defaults |= {"replay_ratio": "1.0", "posterior": "decoupled"} | knobs
            run = {"run_id": str(number), "name": label, "status": "FINISHED", "label": label}
            runs.append(run | {"arm": label, "env": env, "seed": seed, "started": 0.0} | defaults)
            curves += [
                {
                    "run_id": str(number),
                    "key": RETURN,
                    "env_step": step,
                    "seconds": step,
                    "value": y,
                }
                for step, y in ((100, 0.0), (200, value))
            ]
        return Records("synthetic", pd.DataFrame(runs), pd.DataFrame(curves))

    return make


@pytest.fixture
def empty_store(tmp_path: Path) -> str:
    """A database that MLflow has created, without experiments of llmdreamer."""
    uri = f"sqlite:///{tmp_path}/empty.db"
    connect(uri).search_experiments()
    return uri


@pytest.fixture
def copy(recorded: Recorded, tmp_path: Path) -> Path:
    """A copy of the store's database that a test may damage."""
    path = tmp_path / "copy.db"
    shutil.copy(recorded.uri.removeprefix("sqlite:///"), path)
    return path
