"""Sections on a single run: losses, replay, speed, adapters and open-loop predictions."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from llmdreamer.analysis import open_loop, plot_run
from llmdreamer.analysis.aggregate import Array
from llmdreamer.analysis.load import Records
from llmdreamer.analysis.section import Section
from llmdreamer.evaluation.open_loop_record import FILE
from llmdreamer.evaluation.open_loop_record import load as load_open_loop
from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.read import fetch_artifact
from llmdreamer.utils.errors import ConfigError

# Title of a panel: (metrics in it, unit of its y-axis).
PANELS = {
    "Return": (r"^(episode|eval)/return$", "episode return"),
    "World-model losses": (r"^world_model/(?!kl_).*loss$", "loss"),
    "KL of posterior and prior": (r"^world_model/kl_", "nats"),
    "Entropy of the latent": (r"^world_model/.*entropy$", "nats"),
    "Behavior losses": (r"^behavior/.*loss$", "loss"),
    "Return normalizer": (r"^behavior/return_scale$", "scale (return)"),
    "Imagined return": (r"^behavior/imagined_return$", "lambda-return"),
    "Policy entropy": (r"^behavior/policy_entropy$", "nats"),
    "Replay ratio": (r"^replay/ratio$", "updates per policy step"),
    "Gradient norms": (r"^optimizer/.*gradient_norm$", "norm before clipping"),
    "Updates per second": (r"^time/updates_per_second$", "1/s"),
    "Time split": (r"^time/.*_share$", "share of the time"),
}

LOGARITHMIC = ("World-model losses", "Behavior losses", "Gradient norms")
"""Panels whose values fall by orders of magnitude in the first steps."""


def select_run(records: Records, run: str | None) -> str | None:
    """Return the id of the newest run, or of the newest whose id or name begins with `run`; None if none."""
    runs = records.runs.sort_values("started", kind="stable")
    if run is not None:
        runs = runs[runs["run_id"].str.startswith(run) | runs["name"].str.startswith(run)]
    return None if runs.empty else str(runs["run_id"].iloc[-1])


def all_sections(records: Records, run: str | None = None) -> list[Section]:
    """Show the totals of one run, a panel for each recorded group of metrics, adapters and predictions."""
    run_id = select_run(records, run)
    if run_id is None:
        note = "" if run is None else f"No run's id or name begins with {run!r}. "
        return [Section("One run", [note + " ".join(records.notes) or "There are no runs."])]
    row = records.runs.set_index("run_id").loc[run_id]
    series = _series(records.curves[records.curves["run_id"] == run_id])
    panels = {title: _matching(series, pattern) for title, (pattern, _) in PANELS.items()}
    missing = [title.lower() for title, curves in panels.items() if not curves]
    panels = {title: curves for title, curves in panels.items() if curves}
    text = [f"{row['name']} ({run_id}), {row['status']}.", *records.notes]
    if missing:
        text.append(f"Not recorded in this run: {', '.join(missing)}.")
    totals = _totals(series)
    figures = {}
    if panels:
        units = {title: unit for title, (_, unit) in PANELS.items()}
        panels |= _with_target(panels, row) | _complete_time_split(panels)
        figures["metrics"] = plot_run.metric_panels(panels, "environment steps", units, LOGARITHMIC)
    section = Section("One run", text, [totals] if len(totals) else [], figures)
    return [section, *_adapters(series), *_open_loop(records, row)]


def _open_loop(records: Records, row: pd.Series) -> list[Section]:
    """Show the open-loop evaluation that the run has stored, or say why it cannot be shown."""
    try:
        with TemporaryDirectory() as folder:
            path = fetch_artifact(records.uri, row["artifact_uri"], FILE, Path(folder))
            return open_loop.all_sections(load_open_loop(path))
    except (TrackingError, ConfigError) as error:
        text = (
            f"Not shown: {error}. Create it from a checkpoint with "
            "'python -m llmdreamer imagine RUN_DIR'."
        )
        return [Section("Prediction error by horizon", [text])]


def _adapters(series: dict[str, tuple[Array, Array]]) -> list[Section]:
    """Show how much the adapters change each layer, by block; nothing if there are no adapters."""
    norms = {name.removeprefix("lora/"): y for name, (_, y) in _matching(series, "^lora/").items()}
    if not norms:
        return []
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for name, y in norms.items():
        block, layer = _block(name)
        lines.setdefault(layer, []).append((block, float(y[0]), float(y[-1])))
    table = pd.DataFrame(
        [
            {"layer": name, "first value": f"{y[0]:.4g}", "last value": f"{y[-1]:.4g}"}
            for name, y in sorted(norms.items(), key=lambda item: (_block(item[0]), item[0]))
        ]
    )
    figure = plot_run.values_by_block({name: sorted(line) for name, line in sorted(lines.items())})
    text = (
        "Norm of the change that adapters make to each layer, divided by the norm of its weights."
    )
    return [Section("LoRA weight norms by layer", [text], [table], {"lora-norms": figure})]


def _block(name: str) -> tuple[int, str]:
    """Return (3, `attn.c_attn`) for `h.3.attn.c_attn`, and (0, name) for a name without a number."""
    match = re.search(r"(?:^|\.)(\d+)\.", name)
    return (int(match[1]), name[match.end() :]) if match else (0, name)


def _series(points: pd.DataFrame) -> dict[str, tuple[Array, Array]]:
    return {
        str(key): (rows["env_step"].to_numpy(np.float64), rows["value"].to_numpy(np.float64))
        for key, rows in points.groupby("key", observed=True, sort=True)
    }


def _matching(
    series: dict[str, tuple[Array, Array]], pattern: str
) -> dict[str, tuple[Array, Array]]:
    return {name: curve for name, curve in series.items() if re.search(pattern, name)}


def _with_target(
    panels: dict[str, dict[str, tuple[Array, Array]]], row: pd.Series
) -> dict[str, dict[str, tuple[Array, Array]]]:
    """Add the configured replay ratio to the panel of the actual one."""
    title = "Replay ratio"
    if title not in panels:
        return {}
    x, _ = panels[title]["replay/ratio"]
    try:
        target = np.full_like(x, float(row["replay_ratio"]))
    except ValueError:  # the run has no tag `replay_ratio`
        return {}
    return {title: panels[title] | {"configured": (x, target)}}


def _complete_time_split(
    panels: dict[str, dict[str, tuple[Array, Array]]],
) -> dict[str, dict[str, tuple[Array, Array]]]:
    """Fill missing time shares with zero: a stage that did not run since the last entry has no value."""
    title = "Time split"
    if title not in panels:
        return {}
    steps = np.unique(np.concatenate([x for x, _ in panels[title].values()]))
    complete = {}
    for name, (x, y) in panels[title].items():
        values = np.zeros_like(steps)
        values[np.searchsorted(steps, x)] = y
        complete[name] = (steps, values)
    return {title: complete}


def _totals(series: dict[str, tuple[Array, Array]]) -> pd.DataFrame:
    """Tabulate the last values of sizes, memory and totals."""
    names = [
        name for name in series if re.match(r"^(parameters/|compute/|replay/|system/peak)", name)
    ]
    rows = [{"metric": name, "last value": f"{series[name][1][-1]:,.6g}"} for name in names]
    return pd.DataFrame(rows)
