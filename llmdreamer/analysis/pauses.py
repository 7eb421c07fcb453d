"""Finds the pauses between the end of an attempt of a run and the attempt that resumed it."""

from __future__ import annotations

import numpy as np
import pandas as pd

from llmdreamer.analysis.aggregate import Array

UPDATES = "replay/updates"
RATE = "time/updates_per_second"
SHORTEST_PAUSE_SECONDS = 10.0
"""Shorter differences may be rounding, or the start of a process."""


def find_pauses(points: pd.DataFrame) -> pd.DataFrame:
    """Return the pauses of runs: (run_id, resumed_ms, seconds), sorted by time.

    A record of training says how long its updates took, counted from the record before it or from the
    start of the process. If more time has passed since the record before it, the run was not training:
    it was stopped, or it trained from a checkpoint that it later returned to.

    Args:
        points: run_id, key, env_step, time_ms, value, one for each (run, key, step).
    """
    columns = ["run_id", "env_step", "time_ms", "value"]
    updates, rates = (points.loc[points["key"] == key, columns] for key in (UPDATES, RATE))
    records = updates.astype({"run_id": object}).merge(
        rates.astype({"run_id": object}), on=["run_id", "env_step"], suffixes=("", "_rate")
    )
    records = records.sort_values(["run_id", "env_step"])
    before = records.groupby("run_id", sort=False)[["value", "time_ms"]].shift()
    rate = records["value_rate"].where(records["value_rate"] > 0)
    training = (records["value"] - before["value"]) / rate
    seconds = (records["time_ms"] - before["time_ms"]) / 1000 - training
    pauses = pd.DataFrame(
        {
            "run_id": records["run_id"],
            "resumed_ms": records["time_ms"] - 1000 * training,
            "seconds": seconds,
        }
    )
    return pauses[seconds > SHORTEST_PAUSE_SECONDS].reset_index(drop=True)


def paused_before(points: pd.DataFrame) -> Array:
    """Return the seconds that a run had paused before each of its points; see `find_pauses`."""
    paused = np.zeros(len(points))
    runs, times = points["run_id"].to_numpy(), points["time_ms"].to_numpy()
    for run, pauses in find_pauses(points).groupby("run_id", sort=False):
        own = runs == run
        ended = np.searchsorted(pauses["resumed_ms"].to_numpy(), times[own], side="right")
        paused[own] = np.concatenate([[0.0], pauses["seconds"].cumsum()])[ended]
    return paused
