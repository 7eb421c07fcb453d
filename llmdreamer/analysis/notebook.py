"""Finds what the notebooks show: the store of the user, or else records in files of the repository."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from llmdreamer.analysis.arms import KNOBS, PARAM, TAG
from llmdreamer.analysis.load import CURVE_COLUMNS, RETURN, Records, current_points, make_records
from llmdreamer.analysis.section import Section
from llmdreamer.tracking.read import Points, StoredRun
from llmdreamer.tracking.record import RunFiles, RunRecord, load
from llmdreamer.tracking.spool import read_metrics
from llmdreamer.tracking.store import sqlite_uri

_DATABASE = "mlflow.db"
# Values of conf/config.yaml: the commands of a results page do not type them.
_DEFAULTS = {
    "backbone": "gpt2",
    "posterior": "decoupled",
    "size": "XS",
    "pretrained": "false",
    "peft": "false",
    "replay_ratio": "default",
}


def find_store(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the URI of the store to show; None if there is none.

    It is LLMDREAMER_STORE, MLFLOW_TRACKING_URI, or `mlflow.db`: in the folder where Jupyter was started,
    in the working directory, or in the folder above it.
    """
    for name in ("LLMDREAMER_STORE", "MLFLOW_TRACKING_URI"):
        if uri := environment.get(name):
            return uri
    here = Path.cwd()
    for folder in (Path(environment.get("PWD", here)), here, here.parent):
        if (path := folder / _DATABASE).is_file():
            return sqlite_uri(path.resolve())
    return None


def pick(sections: Sequence[Section], title: str) -> Section:
    """Return the section of that title, or one that says that there is none."""
    found = [section for section in sections if section.title == title]
    return found[0] if found else Section(title, ["These records have none."])


def read_results(folder: str | Path, env: str) -> Records:
    """Read the curves of a results page: `curves.csv` and `runs.csv`, written by benchmarks/learning.py.

    They hold the returns of evaluations only: no times of evaluations, updates or losses.

    Args:
        env: environment of the runs, which the files do not name.
    """
    folder = Path(folder)
    if not (folder / "curves.csv").is_file():
        return _nothing(folder)
    table, curves = pd.read_csv(folder / "runs.csv"), pd.read_csv(folder / "curves.csv")
    runs = pd.DataFrame(
        {
            "run_id": _run_ids(table),
            "name": _run_ids(table),
            "status": "FINISHED",
            "parent": None,
            "arm": table["label"],
            "label": table["label"],
            "env": env,
            "seed": table["seed"],
            "started": 0.0,
            "ended": table["seconds"].astype(float),
            "artifact_uri": "",
            TAG + "commit": table["commit"],
        }
    )
    typed = [
        dict(word.split("=", 1) for word in str(text).split() if "=" in word)
        for text in table["overrides"]
    ]
    for knob in KNOBS:
        runs[knob] = [values.get(knob, _DEFAULTS[knob]) for values in typed]
    others = {key for values in typed for key in values if key not in (*KNOBS, "exp", "env")}
    for key in sorted(others):
        runs[PARAM + key] = [values.get(key) for values in typed]
    points = pd.DataFrame(
        {
            "run_id": _run_ids(curves),
            "key": RETURN,
            "env_step": curves["env_step"],
            "seconds": np.nan,
            "value": curves["return"],
        }
    )
    source = f"none; recorded results in {folder.as_posix()}"
    return Records(source, runs, points[CURVE_COLUMNS], ["Only returns are recorded there."])


def read_run(folder: str | Path) -> Records:
    """Read a run from its own folder: `tracking/run.json` and `metrics.jsonl`."""
    folder = Path(folder)
    files = RunFiles(folder)
    record = load(RunRecord, files.run_record)
    if record is None:
        return _nothing(folder)
    params = {name: str(value) for name, value in record.params.items()}
    run = StoredRun(
        folder.name,
        record.name,
        record.status or "RUNNING",
        record.started,
        record.ended,
        params,
        record.tags,
        folder.as_posix(),
    )
    values = [
        (run.run_id, key, entry.env_step, round(1000 * entry.time), value, False)
        for entry in read_metrics(files.metrics)
        for key, value in entry.metrics.items()
    ]
    points = current_points(Points.from_records(values))
    return make_records(f"none; the folder {folder.as_posix()}", [run], points)


def _run_ids(table: pd.DataFrame) -> pd.Series:
    return table["label"] + "-" + table["seed"].astype(str)


def _nothing(folder: Path) -> Records:
    note = f"there is no store at {Path.cwd() / _DATABASE}, and no record at {folder.as_posix()}"
    runs = pd.DataFrame(
        columns=["run_id", "name", "status", "label", "env", "seed", "started", *KNOBS]
    )
    return Records("none", runs, pd.DataFrame(columns=CURVE_COLUMNS), [note])
