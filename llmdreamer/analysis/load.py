"""Loads the runs of a store that count, and what they logged, into data frames."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from llmdreamer.analysis import selection
from llmdreamer.analysis.arms import KNOBS, PARAM, TAG, label_arms
from llmdreamer.analysis.pauses import RATE, UPDATES, paused_before
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.read import Points, StoredRun, read_experiment
from llmdreamer.tracking.store import resolve_uri
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import redact

RETURN = "eval/return"
FLOPS = "compute/flops"
OWN_KEYS = (UPDATES, RATE)
"""Metrics that loading needs itself: the length of a run, and its pauses."""
WARMUP = "algo.optimizer.warmup"

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
    run, without the pauses before it was resumed. `notes` are sentences that a reader must know.
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
    statuses: Sequence[str] | None = None,
) -> Records:
    """Load the runs of an experiment. A failure gives no runs and a note.

    Args:
        uri: of the store; a relative SQLite path is relative to the working directory.
        keys: metrics to load; None loads all.
        parent: id of a sweep's MLflow run; if given, only its jobs and `shared` are loaded.
        shared: ids of runs that the sweep found finished: jobs of other sweeps.
        statuses: of the runs that count. Others are left out, and a note says how many. None: the finished
            jobs of a sweep; of a whole store, the runs that `selection.select` chooses.
    """
    source = f"{redact(uri)}, experiment {experiment}"
    try:
        uri = resolve_uri(uri, Path.cwd())
        stored = read_experiment(uri, experiment, [*keys, *OWN_KEYS] if keys else keys)
    except (TrackingError, ConfigError) as error:
        return Records(source, _no_runs(), _no_curves(), [str(error)])
    parents = {run.parent for run in stored.runs}
    runs = [run for run in stored.runs if "arm" in run.tags and run.run_id not in parents]
    if parent is not None:
        runs = [run for run in runs if run.parent == parent or run.run_id in shared]
    points = current_points(stored.points)
    if statuses is None and parent is None:
        counted, notes = _select(runs, points)
    else:
        allowed = ("FINISHED",) if statuses is None else statuses
        counted, notes = [run for run in runs if run.status in allowed], []
    notes = _exclusion_notes(runs, counted, stored.runs, notes)
    return make_records(source, counted, points, keys, notes, uri)


def make_records(
    source: str,
    runs: Sequence[StoredRun],
    points: pd.DataFrame,
    keys: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    uri: str = "",
) -> Records:
    """Make the records of runs that count; a run that is repeated is kept once, with a note.

    Args:
        points: as `current_points` returns them.
        keys: metrics to keep; None keeps all.
    """
    frame, repeated = _drop_repeated(_frame(runs))
    notes = list(notes)
    if repeated:
        notes.append(
            f"{_count_runs(repeated)} left out: a finished or newer run has the same configuration and seed."
        )
    curves = _curves(points, frame)
    if keys is not None:
        curves = curves[curves["key"].isin(keys)].reset_index(drop=True)
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


def _curves(points: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return the points of the runs with `seconds` since the start, without pauses."""
    started = runs.set_index("run_id")["started"].reindex(points["run_id"].cat.categories)
    started_at = started.to_numpy(np.float64)[points["run_id"].cat.codes.to_numpy()]
    seconds = points["time_ms"].to_numpy() / 1000 - started_at - paused_before(points)
    frame = points.assign(seconds=seconds)
    return frame.loc[np.isfinite(started_at), CURVE_COLUMNS].reset_index(drop=True)


def _select(runs: list[StoredRun], points: pd.DataFrame) -> tuple[list[StoredRun], list[str]]:
    """Return the runs of a whole store that count, and notes on them."""
    steps = points.groupby("run_id", observed=True)["env_step"].max()
    updates = points[points["key"] == UPDATES].groupby("run_id", observed=True)["value"].max()
    frame = pd.DataFrame(
        {
            "run_id": [run.run_id for run in runs],
            "name": [run.name for run in runs],
            "env": [run.tags.get("env", "unknown") for run in runs],
            "status": [_status(run) for run in runs],
            "started": [run.started for run in runs],
            "sweep": [run.tags.get("sweep") for run in runs],
            "steps": [int(steps.get(run.run_id, 0)) for run in runs],
            "updates": [float(updates.get(run.run_id, 0.0)) for run in runs],
            "warmup": [run.params.get(WARMUP) for run in runs],
        }
    )
    chosen, notes = selection.select(frame)
    return [run for run, counts in zip(runs, chosen, strict=True) if counts], notes


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
    """Keep one run of each configuration and seed; also return the number of runs dropped.

    A finished run is kept rather than an unfinished one, and a newer one rather than an older one.
    """
    order = runs.assign(finished=runs["status"] == "FINISHED")
    newest = order.sort_values(["finished", "started"], kind="stable").drop_duplicates(
        ["label", "env", "seed"], keep="last"
    )
    kept = runs.loc[sorted(newest.index)].reset_index(drop=True)
    return kept, len(runs) - len(kept)


def _exclusion_notes(
    runs: list[StoredRun],
    counted: list[StoredRun],
    all_runs: list[StoredRun],
    selected: list[str],
) -> list[str]:
    """Return notes on the runs that do not count.

    Args:
        selected: notes of the selection. Finished runs that do not count are explained by them.
    """
    if not all_runs:
        return ["The experiment has no runs yet."]
    if not runs:
        return ["The experiment has no runs of llmdreamer: none has a tag `arm`."]
    counted_ids = {run.run_id for run in counted}
    excluded = Counter(_status(run) for run in runs if run.run_id not in counted_ids)
    if selected:
        excluded.pop("FINISHED", None)
    if not excluded:
        return selected
    statuses = ", ".join(f"{count} {status}" for status, count in sorted(excluded.items()))
    return [
        f"{_count_runs(sum(excluded.values()))} of {len(runs)} left out: {statuses}.",
        *selected,
    ]


def _status(run: StoredRun) -> str:
    """Return MLflow's status, or PRUNED for a pruned run, which MLflow shows as KILLED."""
    return "PRUNED" if run.status == "KILLED" and "pruned" in run.tags else run.status


def _count_runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _no_runs() -> pd.DataFrame:
    return pd.DataFrame(columns=RUN_COLUMNS + list(KNOBS))


def _no_curves() -> pd.DataFrame:
    return pd.DataFrame(columns=CURVE_COLUMNS)
