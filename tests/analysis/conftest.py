"""A store of recorded runs, told to MLflow by the real `tracking sync`, with what goes wrong in one.

`data/` holds the spools of real runs. Each stands in the store as it ended; beside them stand a run
that failed, one that was killed, one that a pruner ended, one that still runs, one that was run twice, and
one that was killed and resumed without remembering what MLflow had been told, so that the store holds
points twice and some of a life that the run did not go on from.
"""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from recorded import DATA, EXPERIMENT, Recorded, add, first_life, second_life

from llmdreamer.analysis.load import RETURN, Records, load
from llmdreamer.cli.sync import main as tracking
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
    add(store, root, "failed", "small_gru_2", rows=40, status="FAILED", seed=7)
    add(store, root, "killed", "small_gru_1", rows=45, status=None, seed=8)
    pruned = {"pruned": "at env step 200"}
    add(store, root, "pruned", "small_gpt2_2", rows=50, status="KILLED", seed=5, tags=pruned)
    add(store, root, "running", "small_gpt2_0", rows=30, status=None, seed=6)
    add(store, root, "repeated", "small_gpt2_1", rows=60, seed=0, started_earlier=5000.0)
    first_life(store, root)
    assert tracking([str(root), "--uri", uri]) == 0
    second_life(store)
    assert tracking([str(store.folders["resumed"]), "--uri", uri]) == 0
    connect(uri).update_run(store.run_id("running"), status="RUNNING")
    return store


@pytest.fixture(scope="session")
def records(recorded: Recorded) -> Records:
    return load(recorded.uri, EXPERIMENT)


@pytest.fixture
def arms() -> Callable[..., Records]:
    """Records made up of (arm, knobs, env, seed, return) with two evaluations a run."""

    def make(*rows: tuple[str, dict[str, str], str, int, float]) -> Records:
        runs, curves = [], []
        for number, (label, knobs, env, seed, value) in enumerate(rows):
            plain = {"backbone": "gpt2", "size": "S", "pretrained": "false", "peft": "false"}
            plain |= {"replay_ratio": "1.0", "posterior": "decoupled"} | knobs
            run = {"run_id": str(number), "name": label, "status": "FINISHED", "label": label}
            runs.append(run | {"arm": label, "env": env, "seed": seed, "started": 0.0} | plain)
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
        return Records("made up", pd.DataFrame(runs), pd.DataFrame(curves))

    return make


@pytest.fixture
def empty_store(tmp_path: Path) -> str:
    """A database that MLflow has made, without an experiment of ours."""
    uri = f"sqlite:///{tmp_path}/empty.db"
    connect(uri).search_experiments()
    return uri


@pytest.fixture
def copy(recorded: Recorded, tmp_path: Path) -> Path:
    """The store's database, to do harm to."""
    path = tmp_path / "copy.db"
    shutil.copy(recorded.uri.removeprefix("sqlite:///"), path)
    return path
