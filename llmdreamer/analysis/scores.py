"""One score a run: its return at a budget that most runs of its environment reached."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmdreamer.analysis import aggregate, sentence
from llmdreamer.analysis.aggregate import Array
from llmdreamer.analysis.load import RETURN, Records

# Least and greatest return of an episode, by how the tasks reward: Gymnasium's documentation; the
# DeepMind Control Suite (arXiv:1801.00690, section 2) rewards at most 1 in each of 1000 steps.
BOUNDS = {
    "CartPole-v1": (0.0, 500.0),
    "Acrobot-v1": (-500.0, 0.0),
    "MountainCar-v0": (-200.0, 0.0),
    "dmc:": (0.0, 1000.0),
}


@dataclass(frozen=True)
class Scores:
    """One score a run at a common budget. `frame`: label, env, seed, score."""

    name: str  # of the environment, or "all environments"
    frame: pd.DataFrame
    unit: str
    notes: list[str]

    def of(self, label: str) -> tuple[Array, Array]:
        """(scores, environments) of an arm."""
        rows = self.frame[self.frame["label"] == label]
        return rows["score"].to_numpy(), rows["env"].to_numpy()

    @property
    def labels(self) -> list[str]:
        return sorted(self.frame["label"].unique())


def scores(records: Records, key: str = RETURN) -> list[Scores]:
    """A score a run at the budget that most runs of its environment reached, the longest such.

    One short trial of a smoke test in the same store must not have all others compared at its end.
    Environments are pooled where the range of their returns is known (BOUNDS), and stand
    alone otherwise.
    """
    points = records.of(key)
    if points.empty:
        return []
    rows, notes = [], _without_points(records, points, key)
    for env, of_env in points.groupby("env", sort=True):
        spans = of_env.groupby("run_id", sort=False)["env_step"].agg(["min", "max"])
        budget = _budget(spans)
        early, late = spans["max"] < budget, spans["min"] > budget
        if budget < spans["max"].max():
            who = "most" if early.any() else "all"
            notes.append(
                f"{env}: compared at env step {budget}, the last that {who} runs reached "
                f"(the longest went on to {int(spans['max'].max())})."
            )
        for which, why in ((early, "ended before"), (late, "first evaluated after")):
            if which.any():
                left = sentence.count(int(which.sum()), "run")
                notes.append(f"{env}: {left} left out of the scores: {why} env step {budget}.")
        # Points lie in order of steps, so the last one within the budget is the score.
        there = of_env["run_id"].isin(spans.index[~early & ~late])
        reached = of_env[there & (of_env["env_step"] <= budget)].groupby("run_id", sort=False)
        rows.append(reached.tail(1)[["label", "env", "seed", "value"]])
    frame = pd.concat(rows).rename(columns={"value": "score"})
    finite = np.isfinite(frame["score"])
    if not finite.all():
        count = sentence.count(int((~finite).sum()), "run")
        notes.append(f"{count} without a finite return left out.")
        frame = frame[finite]
    if frame.empty:
        return []
    environments = sorted(frame["env"].unique())
    if len(environments) == 1:
        return [Scores(environments[0], frame, "return", notes)]
    bounds = {env: _bounds(env) for env in environments}
    if all(bounds.values()):
        low, high = (frame["env"].map({e: b[i] for e, b in bounds.items() if b}) for i in (0, 1))
        pooled = frame.assign(score=aggregate.normalise(frame["score"], low, high))
        return [Scores("all environments", pooled, "normalised return", notes)]
    notes.append("Environments are not pooled: the range of returns is not known of each.")
    return [Scores(env, frame[frame["env"] == env], "return", notes) for env in environments]


def _budget(spans: pd.DataFrame) -> int:
    """The step that the most runs were evaluated both before and after, or at; of several the last.

    Args:
        spans: the first (`min`) and last (`max`) step at which each run was evaluated.
    """
    first, last = np.sort(spans["min"].to_numpy()), np.sort(spans["max"].to_numpy())
    begun = np.searchsorted(first, last, side="right")
    ended = np.searchsorted(last, last, side="left")
    kept = begun - ended
    return int(last[kept == kept.max()][-1])


def _bounds(env: str) -> tuple[float, float] | None:
    return BOUNDS.get(env) or (BOUNDS["dmc:"] if env.startswith("dmc:") else None)


def _without_points(records: Records, points: pd.DataFrame, key: str) -> list[str]:
    silent = len(records.runs) - points["run_id"].nunique()
    return [f"{sentence.count(silent, 'run')} left out of the scores: no {key}."] if silent else []
