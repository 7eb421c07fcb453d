"""The parts of the look into one run: what it lost, how it was fed, how fast it learned."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd

from llmdreamer.analysis import open_loop, plot_run
from llmdreamer.analysis.aggregate import Array
from llmdreamer.analysis.load import Records
from llmdreamer.analysis.part import Part
from llmdreamer.evaluation.open_loop_record import FILE
from llmdreamer.evaluation.open_loop_record import load as load_open_loop
from llmdreamer.tracking.read import fetch_artifact
from llmdreamer.tracking.store import TrackingError
from llmdreamer.utils.errors import ConfigError

# Title of a panel: (metrics in it, unit of its y-axis).
PANELS = {
    "Return": (r"^(episode|eval)/return$", "return of an episode"),
    "World-model losses": (r"^world_model/(?!kl_).*loss$", "loss"),
    "KL of posterior and prior": (r"^world_model/kl_", "nats"),
    "Entropy of the latent": (r"^world_model/.*entropy$", "nats"),
    "Behaviour losses": (r"^behavior/.*loss$", "loss"),
    "Return normaliser": (r"^behavior/return_scale$", "scale (return)"),
    "Imagined return": (r"^behavior/imagined_return$", "lambda-return"),
    "Policy entropy": (r"^behavior/policy_entropy$", "nats"),
    "Replay ratio held": (r"^replay/ratio$", "updates per policy step"),
    "Gradient norms": (r"^optimizer/.*gradient_norm$", "norm before clipping"),
    "Updates per second": (r"^time/updates_per_second$", "1/s"),
    "Time split": (r"^time/.*_share$", "share of the time"),
}

LOGARITHMIC = ("World-model losses", "Behaviour losses", "Gradient norms")
"""What falls by orders of magnitude in its first steps."""


def choose(records: Records, run: str | None) -> str | None:
    """The run whose id or name begins with `run`, the newest if None; None if there is none."""
    runs = records.runs.sort_values("started", kind="stable")
    if run is not None:
        runs = runs[runs["run_id"].str.startswith(run) | runs["name"].str.startswith(run)]
    return None if runs.empty else str(runs["run_id"].iloc[-1])


def everything(records: Records, run: str | None = None) -> list[Part]:
    """All there is of one run: its facts, then a figure of every panel that was recorded."""
    chosen = choose(records, run)
    if chosen is None:
        asked = "" if run is None else f"No run's id or name begins with {run!r}. "
        return [Part("One run", [asked + " ".join(records.notes) or "There are no runs."])]
    row = records.runs.set_index("run_id").loc[chosen]
    series = _series(records.curves[records.curves["run_id"] == chosen])
    panels = {title: _matching(series, pattern) for title, (pattern, _) in PANELS.items()}
    missing = [title.lower() for title, found in panels.items() if not found]
    panels = {title: found for title, found in panels.items() if found}
    text = [f"{row['name']} ({chosen}), {row['status']}.", *records.notes]
    if missing:
        text.append(f"Not recorded in this run: {', '.join(missing)}.")
    facts = _facts(series)
    figures = {}
    if panels:
        units = {title: unit for title, (_, unit) in PANELS.items()}
        panels |= _with_target(panels, row) | _whole_split(panels)
        figures["inside"] = plot_run.lines(panels, "environment steps", units, LOGARITHMIC)
    part = Part("One run", text, [facts] if len(facts) else [], figures)
    return [part, *_adapters(series), *_foretold(records, row)]


def _foretold(records: Records, row: pd.Series) -> list[Part]:
    """What the run has left of its open-loop imagination, or a sentence that it has left none."""
    try:
        with TemporaryDirectory() as folder:
            path = fetch_artifact(records.uri, row["artifact_uri"], FILE, Path(folder))
            return open_loop.everything(load_open_loop(path))
    except (TrackingError, ConfigError) as error:
        text = f"Not shown: {error}. python -m llmdreamer imagine RUN_DIR makes it of a checkpoint."
        return [Part("Prediction error by horizon", [text])]


def _adapters(series: dict[str, tuple[Array, Array]]) -> list[Part]:
    """How far adapters have moved each layer, in blocks from first to last; nothing without any."""
    norms = {name.removeprefix("lora/"): y for name, (_, y) in _matching(series, "^lora/").items()}
    if not norms:
        return []
    lines: dict[str, list[tuple[int, float, float]]] = {}
    for name, y in norms.items():
        block, layer = _block(name)
        lines.setdefault(layer, []).append((block, float(y[0]), float(y[-1])))
    table = pd.DataFrame(
        [
            {"layer": name, "at first": f"{y[0]:.4g}", "at last": f"{y[-1]:.4g}"}
            for name, y in sorted(norms.items(), key=lambda item: (_block(item[0]), item[0]))
        ]
    )
    figure = plot_run.by_block({name: sorted(rows) for name, rows in sorted(lines.items())})
    text = "How large the adapters' change of each layer is, as a share of the layer's own weights."
    return [Part("LoRA weight norms by layer", [text], [table], {"lora-norms": figure})]


def _block(name: str) -> tuple[int, str]:
    """`h.3.attn.c_attn` is block 3 of `attn.c_attn`; of a name without a number, block 0 of itself."""
    found = re.search(r"(?:^|\.)(\d+)\.", name)
    return (int(found[1]), name[found.end() :]) if found else (0, name)


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
    """The replay ratio that was asked for, beside the one that was held."""
    title = "Replay ratio held"
    if title not in panels:
        return {}
    x, _ = panels[title]["replay/ratio"]
    try:
        target = np.full_like(x, float(row["replay_ratio"]))
    except ValueError:  # a run of other software, which does not say what it asked for
        return {}
    return {title: panels[title] | {"asked for": (x, target)}}


def _whole_split(
    panels: dict[str, dict[str, tuple[Array, Array]]],
) -> dict[str, dict[str, tuple[Array, Array]]]:
    """Shares of the time at every row: what was not done since the last one took none of it, and is
    not logged."""
    title = "Time split"
    if title not in panels:
        return {}
    steps = np.unique(np.concatenate([x for x, _ in panels[title].values()]))
    whole = {}
    for name, (x, y) in panels[title].items():
        values = np.zeros_like(steps)
        values[np.searchsorted(steps, x)] = y
        whole[name] = (steps, values)
    return {title: whole}


def _facts(series: dict[str, tuple[Array, Array]]) -> pd.DataFrame:
    """Last values of what is told once: sizes, memory, totals."""
    names = [
        name for name in series if re.match(r"^(parameters/|compute/|replay/|system/peak)", name)
    ]
    rows = [{"metric": name, "last value": f"{series[name][1][-1]:,.6g}"} for name in names]
    return pd.DataFrame(rows)
