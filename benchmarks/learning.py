"""What finished runs have learned, from their folders: a page with table and figure, and CSV files.

    python benchmarks/learning.py runs/learning --out docs/results/cartpole [--title T] [--reach 475]
        [--published analysis/data/dmc_proprio.csv]

A run's folder is called LABEL-SEED, as `runs/learning/gpt2-0`; runs of one label differ in nothing but
the seed.
Below --out: README.md, curves.csv (every evaluation), runs.csv (a row a run), returns.png.
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
from llmdreamer.analysis.part import Part, save
from llmdreamer.analysis.published import published_curves, read_published, task_of
from llmdreamer.tracking.record import RunFiles, Wanted, load
from llmdreamer.tracking.spool import read
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
# A folder of the machine says nothing about the result.
OUTPUT_ROOT = re.compile(r"(?<!\S)(?:'output_root=[^']*'|output_root=\S+)\s?")


@dataclass(frozen=True)
class Run:
    """One finished run."""

    label: str
    seed: int
    tags: dict[str, str]
    seconds: float  # by the clock, the evaluations of the end included
    evaluations: dict[int, float]  # mean return by environment step, policy mode
    best: float | None  # of the policy that did best in one of them, on other episodes


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="the folder that the runs' folders are in")
    parser.add_argument("--out", type=Path, required=True, help="folder of the page")
    parser.add_argument("--title", help="of the page (default: the environment)")
    parser.add_argument("--reach", type=float, help="a return: at which step was it reached?")
    parser.add_argument("--published", type=Path, help="table of curves to draw DreamerV3's beside")
    args = parser.parse_args()
    try:
        runs, notes = find(args.runs)
        beside = published(runs, args.published)
        write(runs, notes, args.out, args.title or runs[0].tags["env"], args.reach, beside)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(args.out / "README.md")
    return 0


def find(folder: Path) -> tuple[list[Run], list[str]]:
    """The finished runs below a folder, and a sentence for what else there is.

    Raises:
        ConfigError: if there is none, or runs of one label are not of one configuration.
    """
    runs, notes = [], []
    paths = sorted(path.parents[1] for path in folder.glob("*/tracking/run.json"))
    for path in paths:
        named, wanted = FOLDER.fullmatch(path.name), load(Wanted, RunFiles(path).wanted)
        assert wanted is not None
        if named is None or wanted.tags["seed"] != named[2]:
            raise ConfigError(f"{path}: of seed {wanted.tags['seed']}, so it must end in that")
        if wanted.status != "FINISHED" or wanted.ended is None:
            notes.append(
                f"{path.name} is left out: it has not finished ({wanted.status or 'running'})."
            )
            continue
        rows = [(row.env_step, row.metrics) for row in read(RunFiles(path).metrics)]
        evaluations = {step: row["eval/return"] for step, row in rows if "eval/return" in row}
        best = [row["eval/best_return"] for _, row in rows if "eval/best_return" in row]
        seconds = wanted.ended - wanted.started
        last = best[-1] if best else None
        runs.append(Run(named[1], int(named[2]), wanted.tags, seconds, evaluations, last))
    if not runs:
        raise ConfigError(" ".join([f"{folder}: no finished runs.", *notes]))
    for label, same in by_label(runs).items():
        if len({(run.tags["cell"], *run.evaluations) for run in same}) > 1:
            raise ConfigError(f"{folder}/{label}-*: not of one configuration; name them apart")
    return runs, notes


def published(runs: list[Run], path: Path | None) -> dict[str, plot.Curve]:
    """What DreamerV3's author published of the runs' task, as far as they went: none, or one curve.

    Raises:
        ConfigError: if the table has nothing of it.
    """
    if path is None:
        return {}
    task, until = task_of(runs[0].tags["env"]), max(max(run.evaluations) for run in runs)
    rows = read_published(path)
    rows = rows[(rows["task"] == task) & (rows["method"] == "dreamerv3")]
    if rows.empty:
        raise ConfigError(f"--published: {path} has no {task}")
    return published_curves(rows, until)


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
    beside: dict[str, plot.Curve],
) -> None:
    """Write the page and what belongs to it."""
    groups = by_label(runs)
    curves = pd.DataFrame(
        [
            (run.label, run.seed, step, value)
            for same in groups.values()
            for run in same
            for step, value in run.evaluations.items()
        ],
        columns=["label", "seed", "env_step", "return"],
    )
    single = pd.DataFrame([row_of(run, reach) for same in groups.values() for run in same])
    save(Part(title, figures={"returns": draw(groups, reach, beside)}), out, ("png",))
    curves.to_csv(out / "curves.csv", index=False)
    single.to_csv(out / "runs.csv", index=False)
    (out / "README.md").write_text(page(groups, notes, title, reach, beside), encoding="utf-8")


def row_of(run: Run, reach: float | None) -> dict[str, object]:
    """A run's line of runs.csv."""
    row: dict[str, object] = {"label": run.label, "seed": run.seed}
    row |= {"last": [*run.evaluations.values()][-1], "best": run.best}
    if reach is not None:
        row["reached_at"] = reached(run, reach)
    row |= {"seconds": round(run.seconds), "host": run.tags["host"], "commit": run.tags["commit"]}
    return row | {"overrides": overrides(run)}


def reached(run: Run, reach: float) -> int | None:
    """The first step at which an evaluation was as high."""
    return next((step for step, value in run.evaluations.items() if value >= reach), None)


def draw(
    groups: dict[str, list[Run]], reach: float | None, beside: dict[str, plot.Curve]
) -> plot.Figure:
    """A panel a label, all of one scale, what is published in each."""
    panels = {}
    for label, same in groups.items():
        grid = np.array([*same[0].evaluations], np.float64)
        values = np.array([[*run.evaluations.values()] for run in same])
        name = f"{same[0].tags['arm']} (n={len(same)})"
        single = [(grid, row) for row in values]
        panels[label] = {name: plot.Curve(grid, bootstrap(values), single), **beside}
    seen = [value for same in groups.values() for run in same for value in run.evaluations.values()]
    for curve in beside.values():
        seen += [curve.estimate.low.min(), curve.estimate.high.max()]
    if reach is not None:
        seen.append(reach)
    room = 0.05 * (max(seen) - min(seen)) or 1.0
    limits = (min(seen) - room, max(seen) + room)
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
    beside: dict[str, plot.Curve],
) -> str:
    """The page in Markdown."""
    head = ["runs", "n", "last evaluation, IQM [95%]", "last, each", "best policy, each"]
    head += [] if reach is None else [f"first at {reach:g}, step"]
    rows = [[*head, "hours a run"]]
    for label, same in groups.items():
        last = [[*run.evaluations.values()][-1] for run in same]
        found = bootstrap(np.array(last))
        interval = "" if len(last) == 1 else f" [{found.low:.4g}, {found.high:.4g}]"
        row = [label, str(len(same)), f"{found.value:.4g}{interval}", each(last, "{:.4g}".format)]
        row.append(each([run.best for run in same], "{:.4g}".format))
        if reach is not None:
            row.append(each([reached(run, reach) for run in same], str))
        rows.append([*row, f"{iqm(np.array([run.seconds for run in same])) / 3600:.2f}"])
    for name, curve in beside.items():
        found = curve.estimate
        value, low, high = (float(part[-1]) for part in (found.value, found.low, found.high))
        rows.append([f"{name}, published", str(found.n), f"{value:.4g} [{low:.4g}, {high:.4g}]"])
        rows[-1] += ["-"] * (len(rows[0]) - len(rows[-1]))
        notes = [*notes, PUBLISHED.format(step=int(curve.grid[-1]))]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    budgets = {max(run.evaluations) for same in groups.values() for run in same}
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
    """The command of each run, below its label and commit."""
    for label, same in groups.items():
        for commit, runs in groupby(same, key=lambda run: run.tags["commit"]):
            yield f"# {label}, at {commit}"
            yield from (f"python run.py {overrides(run)}" for run in runs)


def overrides(run: Run) -> str:
    """The overrides of a run's command, without its output folder."""
    return OUTPUT_ROOT.sub("", run.tags["overrides"]).strip()


def each(values: list[float | None] | list[int | None], form: Callable[..., str]) -> str:
    return ", ".join("-" if value is None else form(value) for value in values)


if __name__ == "__main__":
    sys.exit(main())
