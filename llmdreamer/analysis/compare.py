"""The parts of the comparison of arms: curves, scores, profile, improvement, differences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from llmdreamer.analysis import aggregate, plot, sentence
from llmdreamer.analysis.aggregate import Array, Estimate
from llmdreamer.analysis.cells import describe, differences, one_knob_apart
from llmdreamer.analysis.load import FLOPS, RETURN, UPDATES, Records
from llmdreamer.analysis.part import Part
from llmdreamer.analysis.scores import Scores, scores
from llmdreamer.analysis.style import MOST_ARMS, wrap

KEYS = (RETURN, FLOPS, UPDATES)
"""The metrics that the comparison needs: loading no others takes a hundredth of the time."""
GRID = 60  # points of a curve whose runs were not measured at the same x


def overview(records: Records) -> Part:
    """What was loaded, and what was not."""
    text = [f"Store: {records.source}.", *records.notes]
    if records.runs.empty:
        return Part("Runs", text + ["There is nothing to compare."])
    unfinished = records.runs.loc[records.runs["status"] != "FINISHED", "status"].value_counts()
    if len(unfinished):
        told = ", ".join(f"{count} {status}" for status, count in sorted(unfinished.items()))
        text.append(f"Counted though they have not finished, as was asked for: {told}.")
    if "tags.commit" in records.runs:
        commits = records.runs["tags.commit"].fillna("unknown").value_counts(sort=False)
        told = ", ".join(f"{name} ({count})" for name, count in sorted(commits.items()))
        text.append(f"Commit of the code that ran (runs): {told}.")
    groups = records.runs.groupby(["label", "env"])
    table = groups["seed"].agg(n="count", seeds=lambda seeds: ", ".join(map(str, sorted(seeds))))
    whole = describe(records.runs)
    if (whole != records.runs["label"]).any():
        table["which is"] = whole.groupby([records.runs["label"], records.runs["env"]]).first()
    return Part("Runs", text, [table.reset_index()])


def returns(records: Records, key: str = RETURN) -> pd.DataFrame:
    """The points behind the curves: arm, env, seed, env_step, wall seconds since the start, return."""
    columns = ["label", "env", "seed", "env_step", "seconds", "value"]
    points = records.of(key)[columns].rename(columns={"label": "arm", "value": "return"})
    return points.sort_values(["arm", "env", "seed", "env_step"]).round({"seconds": 3})


def curves(records: Records, x: str = "env_step", key: str = RETURN) -> Part:
    """Interquartile-mean curves with bands, against `env_step`, `seconds` or `compute`."""
    titles = {"env_step": "environment steps", "seconds": "wall time", "compute": "compute"}
    title = f"Return against {titles[x]}"
    points, xlabel, text = _with_x(records, x, key)
    if points.empty:
        return Part(title, text or [_nothing(records, key)])
    finite = np.isfinite(points["value"])
    if not finite.all():
        # A single one would make its arm's curve nothing at all from there on.
        told = sentence.count(int((~finite).sum()), "evaluation")
        text.append(f"{told} without a finite return left out.")
        points = points[finite]
    panels: dict[str, dict[str, plot.Curve]] = {}
    for env, of_env in points.groupby("env", sort=True):
        arms = {}
        for label, of_arm in of_env.groupby("label", sort=True):
            runs = [_xy(run) for _, run in of_arm.groupby("run_id", observed=True, sort=False)]
            curve = _curve(runs)
            if curve is None:
                text.append(f"{label} in {env}: its runs share no stretch of {xlabel}.")
            else:
                arms[str(label)] = curve
        if len(arms) > MOST_ARMS:
            kept = sorted(arms, key=lambda name: (-arms[name].estimate.n, name))[:MOST_ARMS]
            text.append(f"{env}: {len(arms)} arms; the {len(kept)} with the most runs are drawn.")
            arms = {label: arms[label] for label in sorted(kept)}
        if arms:
            panels[str(env)] = arms
    if not panels:
        return Part(title, text)
    text.insert(0, "Line: interquartile mean over seeds; band: 95% bootstrap interval; thin: runs.")
    figure = plot.curves(panels, xlabel, "evaluation return", runs=len(records.runs) <= 60)
    return Part(title, text, figures={f"curves-{x.replace('_', '-')}": figure})


def table(records: Records) -> Part:
    """One row an arm: n, interquartile mean, interval, and the sentence that they support."""
    part = Part("Scores at the same budget")
    for found in scores(records):
        rows, counts = [], []
        for label in found.labels:
            values, envs = found.of(label)
            counts.append(len(values))
            seeds = found.frame.loc[found.frame["label"] == label, "seed"].nunique()
            got = aggregate.bootstrap(values, envs)
            digits = 3 if found.unit != "return" else 1
            rows.append(
                {
                    "environment": found.name,
                    "arm": label,
                    "n": got.n,
                    f"IQM of {found.unit} [95%]": sentence.estimate(got, digits),
                    "runs, sorted": " ".join(f"{v:.{digits}f}" for v in sorted(values)[:20]),
                    "what it supports": sentence.of_arm(
                        label, got, seeds, len(np.unique(envs)), found.unit
                    ),
                }
            )
        part.tables.append(pd.DataFrame(rows))
        part.text.extend(note for note in found.notes if note not in part.text)
        if unlike := _different_environments(found):
            part.text.append(unlike)
        if warning := sentence.of_few(counts):
            part.text.append(warning)
    return part if part.tables else Part(part.title, [_nothing(records, RETURN)])


def profile(records: Records) -> Part:
    """The share of runs above each return."""
    title = "Performance profile"
    part = Part(title)
    for number, found in enumerate(scores(records)):
        all_scores = found.frame["score"].to_numpy()
        low, high = all_scores.min(), all_scores.max()
        if low == high:
            part.text.append(f"{found.name}: every run has {low:g}, so there is no distribution.")
            continue
        # Normalised scores from 0 on, as they are published; returns from where the runs differ.
        low = low - 0.1 * (high - low) if found.unit == "return" else min(0.0, low)
        thresholds = np.linspace(low, high, 101)
        labels = _compared(found, part)
        if not labels:
            part.text.append(f"{found.name}: no arm has two runs, so there is no distribution.")
            continue
        arms = {
            label: aggregate.profile(found.of(label)[0], thresholds, found.of(label)[1])
            for label in labels
        }
        figure = plot.profiles(thresholds, arms, f"{found.unit} t, {found.name}")
        part.figures[_numbered("profile", number)] = figure
    return part if part.text or part.figures else Part(title, [_nothing(records, RETURN)])


def improvement(records: Records) -> Part:
    """For each two arms: how probably a run of the first beats one of the second."""
    title = "Probability of improvement"
    part = Part(title)
    for number, found in enumerate(scores(records)):
        labels = _compared(found, part)
        rows: list[tuple[str, Estimate]] = []
        for i, label in enumerate(labels):
            for other in labels[i + 1 :]:
                if not set(found.of(label)[1]) & set(found.of(other)[1]):
                    continue
                (one, envs), (two, others) = found.of(label), found.of(other)
                rows.append(
                    (
                        wrap(label) + "\n" + wrap(f"> {other}"),
                        aggregate.improvement(one, two, envs, others),
                    )
                )
        if not rows:
            part.text.append(f"{found.name}: no two arms with two runs each in one environment.")
            continue
        figure = plot.forest(
            rows,
            f"P(first beats second), {found.name}; 95% bootstrap interval",
            0.5,
            [f"{sentence.estimate(got, 2)}, n = {got.n}" for _, got in rows],
        )
        part.figures[_numbered("improvement", number)] = figure
    return part if part.text or part.figures else Part(title, [_nothing(records, RETURN)])


def axes_of_the_question(records: Records) -> Part:
    """Differences of arms that are one knob apart, paired by seed, as a forest and in sentences."""
    title = "What one knob changes"
    part = Part(title)
    for number, found in enumerate(scores(records)):
        compared = [
            (knob, label, other, _paired(found, label, other))
            for knob, label, other in one_knob_apart(records.runs)
        ]
        tested = [row for row in compared if row[3].n > 1]
        adjusted = aggregate.holm(np.array([row[3].p for row in tested], np.float64))
        p = dict(zip([row[:3] for row in tested], map(float, adjusted), strict=True))
        for knob, label, other, got in compared:
            also = differences(records.runs, label, other)
            part.text.append(
                f"{found.name}, {knob}: "
                + sentence.of_difference(label, other, got, p.get((knob, label, other)), also)
            )
        if not compared:
            part.text.append("No two arms are one knob apart.")
        if tested:
            figure = plot.forest(
                [
                    (wrap(f"{knob}: {label}") + "\n" + wrap(f"− {other}"), got)  # noqa: RUF001
                    for knob, label, other, got in tested
                ],
                f"mean paired difference of {found.unit}, {found.name}; 95% bootstrap interval",
                0.0,
                [f"n = {row[3].n}, p = {p[row[:3]]:.2g}" for row in tested],
            )
            part.figures[_numbered("forest", number)] = figure
    if not part.text:
        return Part(title, [_nothing(records, RETURN)])
    if part.figures:
        part.text.append(
            "p: permutation of the arms' names within environments, Holm-adjusted over the rows. A "
            "difference counts when p is below 0.05 and the interval leaves out zero."
        )
    return part


def everything(records: Records) -> list[Part]:
    """All parts in the order of reading."""
    return [
        overview(records),
        table(records),
        curves(records, "env_step"),
        curves(records, "seconds"),
        curves(records, "compute"),
        profile(records),
        improvement(records),
        axes_of_the_question(records),
    ]


def _compared(found: Scores, part: Part) -> list[str]:
    """Arms of two runs or more; where they are too many, those with the most runs, and a sentence."""
    labels = [label for label in found.labels if len(found.of(label)[0]) > 1]
    if len(labels) <= MOST_ARMS:
        return labels
    part.text.append(
        f"{found.name}: {len(labels)} arms; the {MOST_ARMS} with the most runs are drawn."
    )
    return sorted(sorted(labels, key=lambda label: -len(found.of(label)[0]))[:MOST_ARMS])


def _different_environments(found: Scores) -> str:
    """Pooled scores of arms that ran in different environments must not be held against each other."""
    sets = {label: tuple(sorted(set(found.of(label)[1]))) for label in found.labels}
    if len(set(sets.values())) < 2:
        return ""
    told = "; ".join(f"{label}: {', '.join(envs)}" for label, envs in sets.items())
    return f"The arms ran in different environments, so their rows are not comparable ({told})."


def _paired(found: Scores, label: str, other: str) -> Estimate:
    one, two = (found.frame[found.frame["label"] == name] for name in (label, other))
    pairs = one.merge(two, on=["env", "seed"], suffixes=("", "_other"))
    if pairs.empty:
        nothing = np.array(np.nan)
        return Estimate(nothing, nothing, nothing, 0)
    return aggregate.paired_difference(
        pairs["score"].to_numpy(), pairs["score_other"].to_numpy(), pairs["env"].to_numpy()
    )


def _with_x(records: Records, x: str, key: str) -> tuple[pd.DataFrame, str, list[str]]:
    """The points of `key` with a column `x`, the name of the axis, and what must be said of it."""
    points = records.of(key)
    if x == "env_step" or points.empty:
        return points.assign(x=points["env_step"]), "environment steps", []
    if x == "seconds":
        hours = points["seconds"].max() > 7200
        by, unit = (3600.0, "hours") if hours else (60.0, "minutes")
        return points.assign(x=points["seconds"] / by), f"wall time ({unit})", []
    for metric, name in ((FLOPS, "training compute (FLOP)"), (UPDATES, "gradient updates")):
        spent = {run: _xy(rows, "env_step") for run, rows in _runs_of(records, metric)}
        if set(points["run_id"]) <= set(spent):
            text = [] if metric == FLOPS else ["FLOPs are not recorded: gradient updates instead."]
            values = [
                np.interp(step, *spent[run])
                for run, step in zip(points["run_id"], points["env_step"], strict=True)
            ]
            return points.assign(x=values), name, text
    return points.iloc[:0], "", [f"Neither {FLOPS} nor {UPDATES} is recorded for every run."]


def _runs_of(records: Records, key: str) -> list[tuple[str, pd.DataFrame]]:
    rows = records.curves[records.curves["key"] == key]
    return [(str(run), group) for run, group in rows.groupby("run_id", observed=True, sort=False)]


def _curve(runs: list[tuple[Array, Array]]) -> plot.Curve | None:
    """Aggregate runs over the stretch that all of them cover, so that n is the same all along."""
    first, last = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)
    if first > last:
        return None
    same = all(np.array_equal(x, runs[0][0]) for x, _ in runs)
    grid = runs[0][0] if same else np.unique(np.linspace(first, last, GRID))
    values = np.stack([aggregate.on_grid(x, y, grid) for x, y in runs])
    return plot.Curve(grid, aggregate.bootstrap(values), runs)


def _xy(run: pd.DataFrame, x: str = "x") -> tuple[Array, Array]:
    return run[x].to_numpy(np.float64), run["value"].to_numpy(np.float64)


def _numbered(name: str, number: int) -> str:
    """A figure's name: `forest`, and for the environments after the first `forest-2`, ..."""
    return name if number == 0 else f"{name}-{number + 1}"


def _nothing(records: Records, key: str) -> str:
    if records.runs.empty:
        return " ".join(records.notes) or "There are no runs."
    finite = "a finite " if (records.curves["key"] == key).any() else ""
    return f"No run has logged {finite}{key}, of {sentence.count(len(records.runs), 'run')}."
