"""Compares our curves with published ones: DreamerV3 and baselines on the DeepMind Control Suite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from llmdreamer.analysis import aggregate, plot
from llmdreamer.analysis.aggregate import Array
from llmdreamer.analysis.load import RETURN, Records
from llmdreamer.analysis.section import Section

DEFAULT_TASKS = ("cartpole_balance", "reacher_easy", "pendulum_swingup", "walker_walk")
"""Tasks that are shown if the store has no run in a published task."""
METHOD_NAMES = {"dreamerv3": "DreamerV3", "d4pg": "D4PG", "dmpo": "DMPO", "ppo_fixhp": "PPO"}
"""Display names of the methods in the table."""


def read_published(path: Path) -> pd.DataFrame:
    """Read the columns method, task, seed, env_step (counting action repeat), episode_return."""
    return pd.read_csv(path)


def task_of(env: str) -> str:
    """Return the published name of an environment's task.

    It is `cartpole_balance` for `dmc:cartpole-balance` and for `dm_control/cartpole-balance-v0`.
    """
    name = env.replace("/", ":").rpartition(":")[2]
    stem, _, version = name.rpartition("-v")
    return (stem if stem and version.isdigit() else name).replace("-", "_")


def against_published(
    records: Records, published: pd.DataFrame, until: float | None = None
) -> Section:
    """Draw a panel for each task.

    Args:
        until: last environment step shown; None: that of our longest run, or 500 000 without runs.
    """
    title = "Against published curves"
    points = records.metric(RETURN)
    points = points.assign(task=[task_of(env) for env in points["env"]])
    tasks = sorted(set(points["task"]) & set(published["task"]))
    text = list(records.notes)
    if not tasks:
        text.append(
            "This store has no run in an environment of the published curves; they are shown alone."
        )
        tasks = [task for task in DEFAULT_TASKS if task in set(published["task"])]
    ours = points[points["task"].isin(tasks) & np.isfinite(points["value"].astype(float))]
    if until is None:
        until = float(ours["env_step"].max()) if len(ours) else 500_000.0
    panels = {}
    for task in tasks:
        arms = published_curves(published[published["task"] == task], until)
        arms |= _ours(ours[ours["task"] == task])
        panels[task] = arms
    text.append(
        "Interquartile mean and 95% bootstrap interval over seeds; steps count action repeat. "
        "Published: score files of danijar/dreamerv3 (MIT). Ours: evaluations with the policy's "
        "mode unless the arm's label has `greedy=False`."
    )
    figure = plot.curves(panels, "environment steps", "episode return", runs=False)
    return Section(title, text, figures={"against-published": figure})


def published_curves(rows: pd.DataFrame, until: float) -> dict[str, plot.Curve]:
    """Return a curve for each method from the published rows of a task, up to an environment step."""
    curves = {}
    for method, of_method in rows.groupby("method", sort=True):
        runs = [
            (run["env_step"].to_numpy(np.float64), run["episode_return"].to_numpy(np.float64))
            for _, run in of_method.groupby("seed", sort=True)
        ]
        curve = _curve(runs, until)
        if curve is not None:
            curves[f"{METHOD_NAMES.get(str(method), method)} (n={curve.estimate.n})"] = curve
    return curves


def _ours(points: pd.DataFrame) -> dict[str, plot.Curve]:
    curves = {}
    for label, of_arm in points.groupby("label", sort=True):
        runs = [
            (run["env_step"].to_numpy(np.float64), run["value"].to_numpy(np.float64))
            for _, run in of_arm.groupby("run_id", observed=True, sort=False)
        ]
        curve = _curve(runs, np.inf)
        if curve is not None:
            curves[f"{label} (ours, n={curve.estimate.n})"] = curve
    return curves


def _curve(runs: list[tuple[Array, Array]], until: float) -> plot.Curve | None:
    """Aggregate runs at the first run's steps, within the range that all runs cover."""
    first, last = max(x[0] for x, _ in runs), min([until, *(x[-1] for x, _ in runs)])
    grid = runs[0][0][(runs[0][0] >= first) & (runs[0][0] <= last)]
    if len(grid) == 0:
        return None
    values = np.stack([aggregate.interpolate(x, y, grid) for x, y in runs])
    return plot.Curve(grid, aggregate.bootstrap(values))
