"""Write the results of finished runs, read from their folders: a page with table and figure, and CSV files.

    python benchmarks/learning.py runs/learning --out docs/results/cartpole [--title T] [--reach 475]
        [--published analysis/data/dmc_proprio.csv]

A run's folder is named LABEL-SEED, such as `runs/learning/gpt2-0`. Runs of one label differ only in the seed.
Files in --out: README.md, curves.csv (all evaluations), runs.csv (one row per run), returns.png.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import pandas as pd

from llmdreamer.analysis import plot
from llmdreamer.analysis.aggregate import bootstrap, iqm
from llmdreamer.analysis.published import published_curves, read_published, task_of
from llmdreamer.analysis.section import Section, save_section
from llmdreamer.tracking.record import RunFiles, RunRecord, load
from llmdreamer.tracking.spool import read_metrics
from llmdreamer.utils.errors import ConfigError

FOLDER = re.compile(r"(.+)-(\d+)")
METHOD = """\
Environment steps: {steps}. Evaluations take the mode of the policy, unless `eval.greedy=false`. Seeds are
in rising order, as in runs.csv. Lines and table show the interquartile mean; of up to three runs this is the
mean. The interval is the 95% percentile bootstrap over runs; with so few runs it is too narrow. Thin lines
are single runs. The best policy is the one with the highest evaluation during training; its figure is from
other episodes. Hours are wall time, on a machine that also did other work."""

PUBLISHED = """\
Published: score files of danijar/dreamerv3 (MIT), up to step {step:,}. Their source and what they \
count are in analysis/data/README.md."""
# The output folder is specific to a machine and does not affect the result.
OUTPUT_ROOT = re.compile(r"(?<!\S)(?:'output_root=[^']*'|output_root=\S+)\s?")


@dataclass(frozen=True)
class Run:
    """One finished run."""

    label: str
    seed: int
    tags: dict[str, str]
    seconds: float  # wall time, with the final evaluations
    evaluations: dict[int, float]  # mean return by environment step, with the mode of the policy
    best: float | None  # return of the best evaluated policy, on new episodes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder that contains the runs' folders")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page")
    parser.add_argument("--title", help="title of the page (default: the environment)")
    parser.add_argument(
        "--reach", type=float, help="a return; report the step at which it was reached"
    )
    parser.add_argument(
        "--published", type=Path, help="table of published curves to draw for comparison"
    )
    args = parser.parse_args()
    try:
        runs, notes = find_runs(args.runs)
        reference = published_reference(runs, args.published)
        write(runs, notes, args.out, args.title or runs[0].tags["env"], args.reach, reference)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(args.out / "README.md")
    return 0


def find_runs(folder: Path) -> tuple[list[Run], list[str]]:
    """Return the finished runs in a folder, and a note for each run that is left out.

    Raises:
        ConfigError: if no run is finished, or runs of one label differ in more than the seed.
    """
    runs, notes = [], []
    paths = sorted(path.parents[1] for path in folder.glob("*/tracking/run.json"))
    for path in paths:
        match, record = FOLDER.fullmatch(path.name), load(RunRecord, RunFiles(path).run_record)
        assert record is not None
        if match is None or record.tags["seed"] != match[2]:
            raise ConfigError(
                f"{path}: the folder name must end in -{record.tags['seed']}, the seed of the run"
            )
        if record.status != "FINISHED" or record.ended is None:
            notes.append(
                f"{path.name} is left out: it has not finished ({record.status or 'running'})."
            )
            continue
        records = [
            (entry.env_step, entry.metrics) for entry in read_metrics(RunFiles(path).metrics)
        ]
        evaluations = {
            step: values["eval/return"] for step, values in records if "eval/return" in values
        }
        best = [values["eval/best_return"] for _, values in records if "eval/best_return" in values]
        seconds = record.ended - record.started
        last = best[-1] if best else None
        runs.append(Run(match[1], int(match[2]), record.tags, seconds, evaluations, last))
    if not runs:
        raise ConfigError(" ".join([f"{folder}: no finished runs.", *notes]))
    for label, group in by_label(runs).items():
        if len({(run.tags["cell"], *run.evaluations) for run in group}) > 1:
            raise ConfigError(
                f"{folder}/{label}-*: runs of one label differ in more than the seed; rename them"
            )
    return runs, notes


def published_reference(runs: list[Run], path: Path | None) -> dict[str, plot.Curve]:
    """Return DreamerV3's published curve for the runs' task, up to their last step; {} without a table.

    Raises:
        ConfigError: if the table does not contain the task.
    """
    if path is None:
        return {}
    task, last_step = task_of(runs[0].tags["env"]), max(max(run.evaluations) for run in runs)
    rows = read_published(path)
    rows = rows[(rows["task"] == task) & (rows["method"] == "dreamerv3")]
    if rows.empty:
        raise ConfigError(f"--published: {path} has no {task}")
    return published_curves(rows, last_step)


def by_label(runs: list[Run]) -> dict[str, list[Run]]:
    labels = sorted({run.label for run in runs})
    return {
        label: sorted((run for run in runs if run.label == label), key=lambda run: run.seed)
        for label in labels
    }


def write(
    runs: list[Run],
    notes: list[str],
    out: Path,
    title: str,
    reach: float | None,
    reference: dict[str, plot.Curve],
) -> None:
    """Write the page, the figure and the CSV files."""
    groups = by_label(runs)
    curves = pd.DataFrame(
        [
            (run.label, run.seed, step, value)
            for group in groups.values()
            for run in group
            for step, value in run.evaluations.items()
        ],
        columns=["label", "seed", "env_step", "return"],
    )
    single = pd.DataFrame([row_of(run, reach) for group in groups.values() for run in group])
    save_section(Section(title, figures={"returns": draw(groups, reach, reference)}), out, ("png",))
    curves.to_csv(out / "curves.csv", index=False)
    single.to_csv(out / "runs.csv", index=False)
    (out / "README.md").write_text(page(groups, notes, title, reach, reference), encoding="utf-8")


def row_of(run: Run, reach: float | None) -> dict[str, object]:
    """Make a run's row of runs.csv."""
    row: dict[str, object] = {"label": run.label, "seed": run.seed}
    row |= {"last": [*run.evaluations.values()][-1], "best": run.best}
    if reach is not None:
        row["reached_at"] = reached(run, reach)
    row |= {"seconds": round(run.seconds), "host": run.tags["host"], "commit": run.tags["commit"]}
    return row | {"overrides": overrides(run)}


def reached(run: Run, reach: float) -> int | None:
    """Return the first step at which an evaluation reached the return; None if none did."""
    return next((step for step, value in run.evaluations.items() if value >= reach), None)


def draw(
    groups: dict[str, list[Run]], reach: float | None, reference: dict[str, plot.Curve]
) -> plot.Figure:
    """Draw a panel for each label, on one scale, with the published curve in each."""
    panels = {}
    for label, group in groups.items():
        grid = np.array([*group[0].evaluations], np.float64)
        values = np.array([[*run.evaluations.values()] for run in group])
        name = f"{group[0].tags['arm']} (n={len(group)})"
        single = [(grid, returns) for returns in values]
        panels[label] = {name: plot.Curve(grid, bootstrap(values), single), **reference}
    shown = [
        value for group in groups.values() for run in group for value in run.evaluations.values()
    ]
    for curve in reference.values():
        shown += [curve.estimate.low.min(), curve.estimate.high.max()]
    if reach is not None:
        shown.append(reach)
    margin = 0.05 * (max(shown) - min(shown)) or 1.0
    limits = (min(shown) - margin, max(shown) + margin)
    figure = plot.curves(panels, "environment steps", "evaluation return", limits=limits)
    if reach is not None:
        for axis in figure.axes[: len(panels)]:
            axis.axhline(reach, color="#999999", lw=1, ls=(0, (4, 3)), zorder=0)
    return figure


def page(
    groups: dict[str, list[Run]],
    notes: list[str],
    title: str,
    reach: float | None,
    reference: dict[str, plot.Curve],
) -> str:
    """Write the page in Markdown."""
    header = ["runs", "n", "last evaluation, IQM [95%]", "last, each", "best policy, each"]
    header += [] if reach is None else [f"first at {reach:g}, step"]
    rows = [[*header, "hours a run"]]
    for label, group in groups.items():
        last = [[*run.evaluations.values()][-1] for run in group]
        estimate = bootstrap(np.array(last))
        interval = "" if len(last) == 1 else f" [{estimate.low:.4g}, {estimate.high:.4g}]"
        row = [
            label,
            str(len(group)),
            f"{estimate.value:.4g}{interval}",
            each(last, "{:.4g}".format),
        ]
        row.append(each([run.best for run in group], "{:.4g}".format))
        if reach is not None:
            row.append(each([reached(run, reach) for run in group], str))
        rows.append([*row, f"{iqm(np.array([run.seconds for run in group])) / 3600:.2f}"])
    for name, curve in reference.items():
        estimate = curve.estimate
        value, low, high = (
            float(part[-1]) for part in (estimate.value, estimate.low, estimate.high)
        )
        rows.append([f"{name}, published", str(estimate.n), f"{value:.4g} [{low:.4g}, {high:.4g}]"])
        rows[-1] += ["-"] * (len(rows[0]) - len(rows[-1]))
        notes = [*notes, PUBLISHED.format(step=int(curve.grid[-1]))]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    budgets = {max(run.evaluations) for group in groups.values() for run in group}
    steps = " to ".join(f"{step:,}" for step in sorted({min(budgets), max(budgets)}))
    return "\n".join(
        [
            f"# {title}",
            "",
            "![evaluation return against environment steps](returns.png)",
            "",
            *lines,
            "",
            METHOD.format(steps=steps),
            "",
            *(f"- {note}" for note in notes),
            *([""] if notes else []),
            "Points: [curves.csv](curves.csv); runs: [runs.csv](runs.csv). Made by",
            "`python benchmarks/learning.py`. The commands of the runs use the defaults of their commits;",
            "their output folder is left out:",
            "",
            "```",
            *commands(groups),
            "```",
            "",
        ]
    )


def commands(groups: dict[str, list[Run]]) -> Iterator[str]:
    """Yield the command of each run, under a line with its label and commit."""
    for label, group in groups.items():
        for commit, runs in groupby(group, key=lambda run: run.tags["commit"]):
            yield f"# {label}, at {commit}"
            yield from (f"python run.py {overrides(run)}" for run in runs)


def overrides(run: Run) -> str:
    """Return the overrides of a run's command, without its output folder."""
    return OUTPUT_ROOT.sub("", run.tags["overrides"]).strip()


def each(values: list[float | None] | list[int | None], format_value: Callable[..., str]) -> str:
    return ", ".join("-" if value is None else format_value(value) for value in values)


if __name__ == "__main__":
    sys.exit(main())
