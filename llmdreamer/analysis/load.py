"""Loads the runs of a store that count, and what they logged, into data frames."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from llmdreamer.analysis.arms import KNOBS, PARAM, TAG, label_arms
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.read import Points, StoredRun, read_experiment
from llmdreamer.tracking.store import resolve_uri
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import redact

RETURN = "eval/return"
FLOPS = "compute/flops"
UPDATES = "replay/updates"

RUN_COLUMNS = [
    "run_id",
    "name",
    "status",
    "parent",
    "arm",
    "label",
    "env",
    "seed",
    "started",
    "ended",
    "artifact_uri",
]
CURVE_COLUMNS = ["run_id", "key", "env_step", "seconds", "value"]


@dataclass(frozen=True)
class Records:
    """The runs of an experiment that count, and their metrics.

    `runs` has one row for each run: RUN_COLUMNS, the knobs, `params.*` and `tags.*`; times are in epoch
    seconds. `curves` has one row for each value: CURVE_COLUMNS; `seconds` count from the start of the
    run and include the pauses before it was resumed. `notes` are sentences that a reader must know.
    """

    source: str
    runs: pd.DataFrame
    curves: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    uri: str = ""  # of the store, with its password: for requests, never shown

    def metric(self, key: str) -> pd.DataFrame:
        """Return the values of one metric, each with its run's label, environment and seed."""
        points = self.curves[self.curves["key"] == key]
        points = points.assign(run_id=points["run_id"].astype(object))
        return points.merge(self.runs[["run_id", "label", "env", "seed"]], on="run_id")


def load(
    uri: str,
    experiment: str = "llmdreamer",
    keys: Sequence[str] | None = None,
    *,
    parent: str | None = None,
    shared: Sequence[str] = (),
    statuses: Sequence[str] = ("FINISHED",),
) -> Records:
    """Load the runs of an experiment. A failure gives no runs and a note.

    Args:
        uri: of the store; a relative SQLite path is relative to the working directory.
        keys: metrics to load; None loads all.
        parent: id of a sweep's MLflow run; if given, only its jobs and `shared` are loaded.
        shared: ids of runs that the sweep found finished: jobs of other sweeps.
        statuses: of the runs that count. Others are left out, and a note says how many.
    """
    source = f"{redact(uri)}, experiment {experiment}"
    try:
        uri = resolve_uri(uri, Path.cwd())
        stored = read_experiment(uri, experiment, keys)
    except (TrackingError, ConfigError) as error:
        return Records(source, _no_runs(), _no_curves(), [str(error)])
    parents = {run.parent for run in stored.runs}
    runs = [run for run in stored.runs if "arm" in run.tags and run.run_id not in parents]
    if parent is not None:
        runs = [run for run in runs if run.parent == parent or run.run_id in shared]
    counted = [run for run in runs if run.status in statuses]
    notes = _exclusion_notes(runs, counted, stored.runs)
    frame = _frame(counted)
    frame, repeated = _drop_repeated(frame)
    if repeated:
        notes.append(
            f"{_count_runs(repeated)} left out: a newer run has the same configuration and seed."
        )
    curves = _curves(stored.points, frame)
    return Records(source, frame, curves, notes, uri)


def current_points(points: Points) -> pd.DataFrame:
    """Return (run_id, key, env_step, time_ms, value) sorted by step, one for each (run, key, step).

    A run that is killed and resumed from a checkpoint logs some steps twice. Only the values from
    which it continued count, so a value is dropped if a later value of the same run and key has the
    same or a smaller step. For evaluations and losses this is exact, because the schedule fixes their
    steps. Episodes of the discarded attempt remain if they ended between the checkpoint and the first
    episode after the resume.
    """
    curve = points.run.astype(np.int64) * max(1, len(points.keys)) + points.key
    order = np.lexsort((points.step, points.time_ms, curve))
    kept = order[_is_current(curve[order], points.step[order])]
    return pd.DataFrame(
        {
            "run_id": pd.Categorical.from_codes(points.run[kept], points.runs),
            "key": pd.Categorical.from_codes(points.key[kept], points.keys),
            "env_step": points.step[kept],
            "time_ms": points.time_ms[kept],
            "value": points.value[kept],
        }
    )


def _is_current(curve: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Mark the values after which their curve has no step as small; values are sorted by curve and time."""
    if len(step) == 0:
        return np.zeros(0, bool)
    # One running minimum from the end serves all curves. An offset puts the steps of each curve above
    # those of all earlier curves, so that the minimum of one curve does not affect another.
    offset = curve * (step.max() - step.min() + 1)
    shifted = step - step.min() + offset
    later = np.minimum.accumulate(shifted[::-1])[::-1]
    return np.append(shifted[:-1] < later[1:], True)


def _curves(points: Points, runs: pd.DataFrame) -> pd.DataFrame:
    frame = current_points(points)
    started = runs.set_index("run_id")["started"].reindex(points.runs).to_numpy(np.float64)
    started_at = started[frame["run_id"].cat.codes.to_numpy()]
    frame = frame.assign(seconds=frame["time_ms"].to_numpy() / 1000 - started_at)
    return frame.loc[np.isfinite(started_at), CURVE_COLUMNS].reset_index(drop=True)


def _frame(runs: Sequence[StoredRun]) -> pd.DataFrame:
    rows = []
    for run in runs:
        row: dict[str, object] = {
            "run_id": run.run_id,
            "name": run.name,
            "status": run.status,
            "parent": run.parent,
            "arm": run.tags["arm"],
            "env": run.tags.get("env", "unknown"),
            "seed": int(run.tags["seed"])
            if re.fullmatch(r"-?\d+", run.tags.get("seed", ""))
            else -1,
            "started": run.started,
            "ended": run.ended,
            "artifact_uri": run.artifact_uri,
        }
        row |= {knob: run.tags.get(knob, "unknown") for knob in KNOBS}
        row |= {PARAM + name: value for name, value in run.params.items()}
        row |= {TAG + name: value for name, value in run.tags.items()}
        rows.append(row)
    if not rows:
        return _no_runs()
    frame = pd.DataFrame(rows)
    frame["label"] = label_arms(frame)
    first = RUN_COLUMNS + list(KNOBS)
    return frame[first + [name for name in frame if name not in first]]


def _drop_repeated(runs: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Keep the newest run of each configuration and seed; also return the number of runs dropped."""
    newest = runs.sort_values("started", kind="stable").drop_duplicates(
        ["label", "env", "seed"], keep="last"
    )
    kept = runs.loc[sorted(newest.index)].reset_index(drop=True)
    return kept, len(runs) - len(kept)


def _exclusion_notes(
    runs: list[StoredRun], counted: list[StoredRun], all_runs: list[StoredRun]
) -> list[str]:
    if not all_runs:
        return ["The experiment has no runs yet."]
    if not runs:
        return ["The experiment has no runs of llmdreamer: none has a tag `arm`."]
    counted_ids = {run.run_id for run in counted}
    excluded = Counter(_status(run) for run in runs if run.run_id not in counted_ids)
    if not excluded:
        return []
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(excluded.items()))
    return [f"{_count_runs(sum(excluded.values()))} of {len(runs)} left out: {statuses}."]


def _status(run: StoredRun) -> str:
    """Return MLflow's status, or PRUNED for a pruned run, which MLflow shows as KILLED."""
    return "PRUNED" if run.status == "KILLED" and "pruned" in run.tags else run.status


def _count_runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _no_runs() -> pd.DataFrame:
    return pd.DataFrame(columns=RUN_COLUMNS + list(KNOBS))


def _no_curves() -> pd.DataFrame:
    return pd.DataFrame(columns=CURVE_COLUMNS)
