"""Sections that compare arms: curves, scores, performance profile, improvement, differences."""

from __future__ import annotations

import numpy as np
import pandas as pd

from llmdreamer.analysis import aggregate, plot, statements
from llmdreamer.analysis.aggregate import Array, Estimate
from llmdreamer.analysis.arms import describe, differences, one_knob_apart
from llmdreamer.analysis.load import FLOPS, RETURN, Records
from llmdreamer.analysis.pauses import UPDATES
from llmdreamer.analysis.scores import Scores, scores
from llmdreamer.analysis.section import Section
from llmdreamer.analysis.selection import UNFINISHED
from llmdreamer.analysis.style import MAX_ARMS, wrap

KEYS = (RETURN, FLOPS, UPDATES)
"""The metrics that the comparison needs; loading only these takes a hundredth of the time."""
MAX_SINGLE_RUNS, MAX_ARMS_WITH_SINGLE_RUNS = 60, 4
"""With more runs, or more arms in a panel, the lines of single runs would hide the means."""
GRID_POINTS = 60  # of a mean curve whose runs were evaluated at different x


def overview(records: Records) -> Section:
    """List the runs that were loaded, and say what was left out."""
    text = [f"Store: {records.source}.", *records.notes]
    if records.runs.empty:
        return Section("Runs", text + ["There is nothing to compare."])
    unfinished = records.runs.loc[records.runs["status"] != "FINISHED", "status"].value_counts()
    if len(unfinished) and not any(UNFINISHED in note for note in records.notes):
        listed = ", ".join(f"{count} {status}" for status, count in sorted(unfinished.items()))
        text.append(f"Included although they have not finished: {listed}.")
    if "tags.commit" in records.runs:
        commits = records.runs["tags.commit"].fillna("unknown").map(_short_commit)
        counts = sorted(commits.value_counts(sort=False).items())
        listed = ", ".join(f"{name} ({count})" for name, count in counts)
        text.append(f"Commits of the code, with their number of runs: {listed}.")
    groups = records.runs.groupby(["label", "env"])
    table = groups["seed"].agg(n="count", seeds=lambda seeds: ", ".join(map(str, sorted(seeds))))
    table = table.join(_last_evaluations(records))
    descriptions = describe(records.runs)
    if (descriptions != records.runs["label"]).any():
        table["description"] = descriptions.groupby(
            [records.runs["label"], records.runs["env"]]
        ).first()
    return Section("Runs", text, [table.reset_index()])


def _short_commit(commit: str) -> str:
    """Cut a commit's hash to ten digits, and keep `-dirty`."""
    name, dash, state = commit.partition("-")
    return name[:10] + dash + state


def _last_evaluations(records: Records) -> pd.DataFrame:
    """Return the last evaluated step and the last return of each arm's runs, by (label, env).

    Scores are taken at a common step. These are not, so the end of every run can be seen.
    """
    points = records.metric(RETURN).sort_values(["seed", "env_step"], kind="stable")
    last = points.groupby("run_id", sort=False).tail(1).groupby(["label", "env"])
    steps = last["env_step"].agg(lambda steps: _range(steps.min(), steps.max()))
    values = last["value"].agg(lambda values: " ".join(f"{value:.4g}" for value in values[:20]))
    return pd.DataFrame({"last env step": steps, "last return, by seed": values})


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def returns(records: Records, key: str = RETURN) -> pd.DataFrame:
    """Return the points of the curves: arm, env, seed, env_step, seconds since the start, return."""
    columns = ["label", "env", "seed", "env_step", "seconds", "value"]
    points = records.metric(key)[columns].rename(columns={"label": "arm", "value": "return"})
    return points.sort_values(["arm", "env", "seed", "env_step"]).round({"seconds": 3})


def curves(records: Records, x: str = "env_step", key: str = RETURN) -> Section:
    """Draw interquartile-mean curves with bands, against `env_step`, `seconds` or `compute`."""
    titles = {"env_step": "environment steps", "seconds": "wall time", "compute": "compute"}
    title = f"Return against {titles[x]}"
    points, xlabel, text = _with_x(records, x, key)
    if points.empty:
        return Section(title, text or [_no_data(records, key)])
    finite = np.isfinite(points["value"])
    if not finite.all():
        # A single one would make the mean curve of its arm NaN.
        excluded = statements.count(int((~finite).sum()), "evaluation")
        text.append(f"{excluded} without a finite return left out.")
        points = points[finite]
    panels: dict[str, dict[str, plot.Curve]] = {}
    for env, of_env in points.groupby("env", sort=True):
        arms = {}
        for label, of_arm in of_env.groupby("label", sort=True):
            runs = [_xy(run) for _, run in of_arm.groupby("run_id", observed=True, sort=False)]
            curve = _curve(runs)
            if curve is None:
                text.append(f"{label} in {env}: its runs have no range of {xlabel} in common.")
            else:
                arms[str(label)] = curve
        if len(arms) > MAX_ARMS:
            drawn = sorted(arms, key=lambda name: (-arms[name].estimate.n, name))[:MAX_ARMS]
            text.append(f"{env}: {len(arms)} arms; the {len(drawn)} with the most runs are drawn.")
            arms = {label: arms[label] for label in sorted(drawn)}
        if arms:
            panels[str(env)] = arms
    if not panels:
        return Section(title, text)
    most = max(map(len, panels.values()))
    single = len(records.runs) <= MAX_SINGLE_RUNS and most <= MAX_ARMS_WITH_SINGLE_RUNS
    legend = "Line: interquartile mean over seeds. Band: 95% bootstrap interval."
    text.insert(0, f"{legend} Thin lines: single runs." if single else legend)
    figure = plot.curves(panels, xlabel, "evaluation return", runs=single)
    return Section(title, text, figures={f"curves-{x.replace('_', '-')}": figure})


def table(records: Records) -> Section:
    """Tabulate each arm: n, interquartile mean, interval, and the statement that they support."""
    section = Section("Scores at the same budget")
    for group in scores(records):
        rows, counts = [], []
        for label in group.labels:
            values, envs = group.arm(label)
            counts.append(len(values))
            seeds = group.frame.loc[group.frame["label"] == label, "seed"].nunique()
            estimate = aggregate.bootstrap(values, envs)
            digits = 3 if group.unit != "return" else 1
            row = {
                "environment": group.name,
                "arm": label,
                "n": estimate.n,
                f"IQM of {group.unit} [95%]": statements.format_estimate(estimate, digits),
                "runs, sorted": " ".join(f"{v:.{digits}f}" for v in sorted(values)[:20]),
            }
            if estimate.n > 1:
                row["statement"] = statements.arm_statement(
                    label, estimate, seeds, len(np.unique(envs)), group.unit
                )
            rows.append(row)
        section.tables.append(pd.DataFrame(rows))
        if alone := counts.count(1):
            section.text.append(f"{group.name}: {statements.single_runs(alone)}")
        section.text.extend(note for note in group.notes if note not in section.text)
        if note := _environments_note(group):
            section.text.append(note)
        warning = statements.few_runs_warning(counts)
        if warning and warning not in section.text:
            section.text.append(warning)
    return section if section.tables else Section(section.title, [_no_data(records, RETURN)])


def profile(records: Records) -> Section:
    """Draw the share of runs above each return."""
    title = "Performance profile"
    section = Section(title)
    for number, group in enumerate(scores(records)):
        all_scores = group.frame["score"].to_numpy()
        low, high = all_scores.min(), all_scores.max()
        if low == high:
            section.text.append(f"{group.name}: every run has {low:g}, so there is no profile.")
            continue
        # Normalized scores start at 0, as published ones do; returns start where the runs differ.
        low = low - 0.1 * (high - low) if group.unit == "return" else min(0.0, low)
        thresholds = np.linspace(low, high, 101)
        labels = _compared(group, section)
        if not labels:
            section.text.append(f"{group.name}: no arm has two runs, so there is no profile.")
            continue
        arms = {
            label: aggregate.performance_profile(
                group.arm(label)[0], thresholds, group.arm(label)[1]
            )
            for label in labels
        }
        figure = plot.profiles(thresholds, arms, f"{group.unit} t, {group.name}")
        section.figures[_numbered("profile", number)] = figure
    return (
        section if section.text or section.figures else Section(title, [_no_data(records, RETURN)])
    )


def improvement(records: Records) -> Section:
    """Draw, for each pair of arms, the probability that a run of the first beats one of the second."""
    title = "Probability of improvement"
    section = Section(title)
    for number, group in enumerate(scores(records)):
        labels = _compared(group, section)
        rows: list[tuple[str, Estimate]] = []
        for i, label in enumerate(labels):
            for other in labels[i + 1 :]:
                if not set(group.arm(label)[1]) & set(group.arm(other)[1]):
                    continue
                (first, envs), (second, other_envs) = group.arm(label), group.arm(other)
                rows.append(
                    (
                        wrap(label) + "\n" + wrap(f"> {other}"),
                        aggregate.probability_of_improvement(first, second, envs, other_envs),
                    )
                )
        if not rows:
            section.text.append(f"{group.name}: no two arms with two runs each in one environment.")
            continue
        figure = plot.forest(
            rows,
            f"P(first beats second), {group.name}; 95% bootstrap interval",
            0.5,
            [
                f"{statements.format_estimate(estimate, 2)}, n = {estimate.n}"
                for _, estimate in rows
            ],
        )
        section.figures[_numbered("improvement", number)] = figure
    return (
        section if section.text or section.figures else Section(title, [_no_data(records, RETURN)])
    )


def one_knob_differences(records: Records) -> Section:
    """Show the differences of arms that are one knob apart, paired by seed, in a plot and in sentences."""
    title = "Differences by one knob"
    section = Section(title)
    for number, group in enumerate(scores(records)):
        compared = [
            (knob, label, other, _paired(group, label, other))
            for knob, label, other in one_knob_apart(records.runs)
            if {label, other} <= set(group.labels)
        ]
        tested = [row for row in compared if row[3].n > 1]
        adjusted = aggregate.holm(np.array([row[3].p for row in tested], np.float64))
        p = dict(zip([row[:3] for row in tested], map(float, adjusted), strict=True))
        if alone := len(compared) - len(tested):
            section.text.append(f"{group.name}: {statements.no_comparison(alone)}")
        for knob, label, other, estimate in tested:
            other_differences = differences(records.runs, label, other)
            section.text.append(
                f"{group.name}, {knob}: "
                + statements.difference_statement(
                    label, other, estimate, p[(knob, label, other)], other_differences
                )
            )
        if tested:
            figure = plot.forest(
                [
                    (wrap(f"{knob}: {label}") + "\n" + wrap(f"− {other}"), estimate)  # noqa: RUF001
                    for knob, label, other, estimate in tested
                ],
                f"mean paired difference of {group.unit}, {group.name}; 95% bootstrap interval",
                0.0,
                [f"n = {row[3].n}, p = {p[row[:3]]:.2g}" for row in tested],
            )
            section.figures[_numbered("forest", number)] = figure
    if not section.text:
        is_scored = bool(scores(records))
        note = "No two arms are one knob apart." if is_scored else _no_data(records, RETURN)
        return Section(title, [note])
    if section.figures:
        section.text.append(
            "p: permutation of arms within environments, Holm-adjusted over the rows. A difference "
            "is claimed if p is below 0.05 and the interval excludes zero."
        )
    return section


def all_sections(records: Records) -> list[Section]:
    """Return all sections of the comparison in reading order."""
    return [
        overview(records),
        table(records),
        curves(records, "env_step"),
        curves(records, "seconds"),
        curves(records, "compute"),
        profile(records),
        improvement(records),
        one_knob_differences(records),
    ]


def _compared(group: Scores, section: Section) -> list[str]:
    """Return the arms with at least two runs; if they are too many, those with the most, with a note."""
    labels = [label for label in group.labels if len(group.arm(label)[0]) > 1]
    if len(labels) <= MAX_ARMS:
        return labels
    section.text.append(
        f"{group.name}: {len(labels)} arms; the {MAX_ARMS} with the most runs are drawn."
    )
    return sorted(sorted(labels, key=lambda label: -len(group.arm(label)[0]))[:MAX_ARMS])


def _environments_note(group: Scores) -> str:
    """Return a note if the arms ran in different environments; their pooled scores are not comparable."""
    sets = {label: tuple(sorted(set(group.arm(label)[1]))) for label in group.labels}
    if len(set(sets.values())) < 2:
        return ""
    listed = "; ".join(f"{label}: {', '.join(envs)}" for label, envs in sets.items())
    return f"The arms ran in different environments, so their rows are not comparable ({listed})."


def _paired(group: Scores, label: str, other: str) -> Estimate:
    first, second = (group.frame[group.frame["label"] == name] for name in (label, other))
    pairs = first.merge(second, on=["env", "seed"], suffixes=("", "_other"))
    if pairs.empty:
        nan = np.array(np.nan)
        return Estimate(nan, nan, nan, 0)
    return aggregate.paired_difference(
        pairs["score"].to_numpy(), pairs["score_other"].to_numpy(), pairs["env"].to_numpy()
    )


def _with_x(records: Records, x: str, key: str) -> tuple[pd.DataFrame, str, list[str]]:
    """Return the points of `key` with a column `x`, the name of that axis, and notes about it."""
    points = records.metric(key)
    if x == "env_step" or points.empty:
        return points.assign(x=points["env_step"]), "environment steps", []
    if x == "seconds":
        if points["seconds"].isna().all():
            return points.iloc[:0], "", ["The time of the evaluations is not recorded."]
        hours = points["seconds"].max() > 7200
        scale, unit = (3600.0, "hours") if hours else (60.0, "minutes")
        return points.assign(x=points["seconds"] / scale), f"wall time ({unit})", []
    for metric, name in ((FLOPS, "training compute (FLOP)"), (UPDATES, "gradient updates")):
        spent = {run: _xy(rows, "env_step") for run, rows in _runs_of(records, metric)}
        if set(points["run_id"]) <= set(spent):
            text = (
                []
                if metric == FLOPS
                else ["FLOPs are not recorded; the axis shows gradient updates."]
            )
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
    """Aggregate runs over the range that all of them cover, so that n is the same everywhere."""
    first, last = max(x[0] for x, _ in runs), min(x[-1] for x, _ in runs)
    if first > last:
        return None
    same_x = all(np.array_equal(x, runs[0][0]) for x, _ in runs)
    grid = runs[0][0] if same_x else np.unique(np.linspace(first, last, GRID_POINTS))
    values = np.stack([aggregate.interpolate(x, y, grid) for x, y in runs])
    return plot.Curve(grid, aggregate.bootstrap(values), runs)


def _xy(run: pd.DataFrame, x: str = "x") -> tuple[Array, Array]:
    return run[x].to_numpy(np.float64), run["value"].to_numpy(np.float64)


def _numbered(name: str, number: int) -> str:
    """Return the name of a figure: `forest`, and `forest-2`, ... for the environments after the first."""
    return name if number == 0 else f"{name}-{number + 1}"


def _no_data(records: Records, key: str) -> str:
    if records.runs.empty:
        return " ".join(records.notes) or "There are no runs."
    finite = "a finite " if (records.curves["key"] == key).any() else ""
    return f"No run has logged {finite}{key}, of {statements.count(len(records.runs), 'run')}."
