"""Our curves over published ones: DreamerV3 and its baselines on the DeepMind Control Suite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from llmdreamer.analysis import aggregate, plot
from llmdreamer.analysis.aggregate import Array
from llmdreamer.analysis.load import RETURN, Records
from llmdreamer.analysis.part import Part

SHOWN = ("cartpole_balance", "reacher_easy", "pendulum_swingup", "walker_walk")
"""Tasks that are shown where a store has none of its own."""
NAMES = {"dreamerv3": "DreamerV3", "d4pg": "D4PG", "dmpo": "DMPO", "ppo_fixhp": "PPO"}
"""What the methods of the table are called in print."""


def read_published(path: Path) -> pd.DataFrame:
    """Columns method, task, seed, env_step (action repeat counted), episode_return."""
    return pd.read_csv(path)


def task_of(env: str) -> str:
    """`dmc:cartpole-balance` and `dm_control/cartpole-balance-v0` are `cartpole_balance`."""
    name = env.replace("/", ":").rpartition(":")[2]
    stem, _, version = name.rpartition("-v")
    return (stem if stem and version.isdigit() else name).replace("-", "_")


def against_published(
    records: Records, published: pd.DataFrame, until: float | None = None
) -> Part:
    """A panel per task. `until`: environment steps shown; None: our longest run, or 500 000."""
    title = "Against published curves"
    points = records.of(RETURN)
    points = points.assign(task=[task_of(env) for env in points["env"]])
    tasks = sorted(set(points["task"]) & set(published["task"]))
    text = list(records.notes)
    if not tasks:
        text.append(
            "This store has no run in an environment of the published curves: they are shown alone."
        )
        tasks = [task for task in SHOWN if task in set(published["task"])]
    ours = points[points["task"].isin(tasks) & np.isfinite(points["value"].astype(float))]
    if until is None:
        until = float(ours["env_step"].max()) if len(ours) else 500_000.0
    panels = {}
    for task in tasks:
        arms = published_curves(published[published["task"] == task], until)
        arms |= _ours(ours[ours["task"] == task])
        panels[task] = arms
    text.append(
        "Interquartile mean and 95% bootstrap interval over seeds; the step counts action repeat. "
        "Published: score files of danijar/dreamerv3 (MIT). Ours: evaluations, "
        "by the policy's mode unless an arm says `greedy=False`."
    )
    figure = plot.curves(panels, "environment steps", "episode return", runs=False)
    return Part(title, text, figures={"against-published": figure})


def published_curves(rows: pd.DataFrame, until: float) -> dict[str, plot.Curve]:
    """A task's published rows as a curve for each method, up to an environment step."""
    curves = {}
    for method, of_method in rows.groupby("method", sort=True):
        runs = [
            (run["env_step"].to_numpy(np.float64), run["episode_return"].to_numpy(np.float64))
            for _, run in of_method.groupby("seed", sort=True)
        ]
        curve = _curve(runs, until)
        if curve is not None:
            curves[f"{NAMES.get(str(method), method)} (n={curve.estimate.n})"] = curve
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
    """Runs on the steps of the first one that all of them cover."""
    first, last = max(x[0] for x, _ in runs), min([until, *(x[-1] for x, _ in runs)])
    grid = runs[0][0][(runs[0][0] >= first) & (runs[0][0] <= last)]
    if len(grid) == 0:
        return None
    values = np.stack([aggregate.on_grid(x, y, grid) for x, y in runs])
    return plot.Curve(grid, aggregate.bootstrap(values))
