"""Loads a store into tidy frames: which runs count, which are left out and why, what they logged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from llmdreamer.analysis.cells import KNOBS, PARAM, TAG, label_arms
from llmdreamer.tracking.read import Points, StoredRun, read_experiment
from llmdreamer.tracking.store import TrackingError, resolve_uri
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
    """What a store says of an experiment.

    `runs`: one row a run that counts: RUN_COLUMNS, the knobs, `params.*` and `tags.*`; times in epoch
    seconds. `curves`: one row a point: CURVE_COLUMNS; `seconds` since the run began, pauses
    between being stopped and resumed included. `notes`: sentences a reader must know.
    """

    source: str
    runs: pd.DataFrame
    curves: pd.DataFrame
    notes: list[str] = field(default_factory=list)
    uri: str = ""  # of the store, with its password: for asking, not for showing

    def of(self, key: str) -> pd.DataFrame:
        """The points of one metric, each with its run's label, environment and seed."""
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
    """Load the runs of an experiment; what goes wrong is a note, and no runs.

    Args:
        uri: of the store; a relative SQLite path is one of the working directory.
        keys: metrics to load; None loads all.
        parent: MLflow run of a sweep: load its jobs only,
        shared: and these runs, which it found finished: they are jobs of another sweep.
        statuses: runs that count. Others are left out, and a note says how many.
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
    notes = _left_out(runs, counted, stored.runs)
    frame = _frame(counted)
    frame, repeated = _newest_of_each(frame)
    if repeated:
        notes.append(
            f"{_runs(repeated)} left out: a newer run has the same configuration and seed."
        )
    curves = _curves(stored.points, frame)
    return Records(source, frame, curves, notes, uri)


def tidy(points: Points) -> pd.DataFrame:
    """Points as (run_id, key, env_step, at, value), each (run, key, step) once, in order of steps.

    A run killed between two checkpoints and resumed logs the steps between them again. What counts
    is what the run went on from: a point goes if a later one of the same run and key has the
    same or a smaller step. Evaluations and losses lie at steps that the schedule gives, so this is
    exact for them; of the episodes of an abandoned life, those between the checkpoint and the
    first new one cannot be told from the rest, and stay.
    """
    curve = points.run.astype(np.int64) * max(1, len(points.keys)) + points.key
    order = np.lexsort((points.step, points.time_ms, curve))
    kept = order[_is_current(curve[order], points.step[order])]
    return pd.DataFrame(
        {
            "run_id": pd.Categorical.from_codes(points.run[kept], points.runs),
            "key": pd.Categorical.from_codes(points.key[kept], points.keys),
            "env_step": points.step[kept],
            "at": points.time_ms[kept],
            "value": points.value[kept],
        }
    )


def _is_current(curve: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Whether no later row of the same curve has a step as small. Rows lie in order of time."""
    if len(step) == 0:
        return np.zeros(0, bool)
    # One running minimum from the end serves all curves: a curve's steps are lifted above those of
    # every curve that lies behind it, so that the minimum never crosses over.
    lift = curve * (step.max() - step.min() + 1)
    lifted = step - step.min() + lift
    later = np.minimum.accumulate(lifted[::-1])[::-1]
    return np.append(lifted[:-1] < later[1:], True)


def _curves(points: Points, runs: pd.DataFrame) -> pd.DataFrame:
    frame = tidy(points)
    started = runs.set_index("run_id")["started"].reindex(points.runs).to_numpy(np.float64)
    started_at = started[frame["run_id"].cat.codes.to_numpy()]
    frame = frame.assign(seconds=frame["at"].to_numpy() / 1000 - started_at)
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


def _newest_of_each(runs: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """A configuration that was run twice with one seed is one sample, not two."""
    newest = runs.sort_values("started", kind="stable").drop_duplicates(
        ["label", "env", "seed"], keep="last"
    )
    kept = runs.loc[sorted(newest.index)].reset_index(drop=True)
    return kept, len(runs) - len(kept)


def _left_out(
    runs: list[StoredRun], counted: list[StoredRun], everything: list[StoredRun]
) -> list[str]:
    if not everything:
        return ["The experiment has no runs yet."]
    if not runs:
        return ["The experiment has no runs with a tag `arm`: none was made by this software."]
    chosen = {run.run_id for run in counted}
    missing = Counter(_end(run) for run in runs if run.run_id not in chosen)
    if not missing:
        return []
    told = ", ".join(f"{count} {status}" for status, count in sorted(missing.items()))
    return [f"{_runs(sum(missing.values()))} of {len(runs)} left out: {told}."]


def _end(run: StoredRun) -> str:
    """How a run ended: MLflow knows no pruning, and has such a run KILLED."""
    return "PRUNED" if run.status == "KILLED" and "pruned" in run.tags else run.status


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _no_runs() -> pd.DataFrame:
    return pd.DataFrame(columns=RUN_COLUMNS + list(KNOBS))


def _no_curves() -> pd.DataFrame:
    return pd.DataFrame(columns=CURVE_COLUMNS)
