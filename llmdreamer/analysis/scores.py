"""The score of a run: its return at a step that as many runs as possible cover."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmdreamer.analysis import aggregate, statements
from llmdreamer.analysis.aggregate import Array
from llmdreamer.analysis.load import RETURN, Records

# Lowest and highest return of an episode. Sources: Gymnasium's documentation; the DeepMind Control
# Suite (arXiv:1801.00690, section 2) gives a reward of at most 1 in each of 1000 steps.
RETURN_BOUNDS = {
    "CartPole-v1": (0.0, 500.0),
    "Acrobot-v1": (-500.0, 0.0),
    "MountainCar-v0": (-200.0, 0.0),
    "dmc:": (0.0, 1000.0),
}


@dataclass(frozen=True)
class Scores:
    """The scores of runs at a common budget. `frame` has the columns label, env, seed, score."""

    name: str  # of the environment, or "all environments"
    frame: pd.DataFrame
    unit: str
    notes: list[str]

    def arm(self, label: str) -> tuple[Array, Array]:
        """Return the scores of an arm's runs, and their environments."""
        rows = self.frame[self.frame["label"] == label]
        return rows["score"].to_numpy(), rows["env"].to_numpy()

    @property
    def labels(self) -> list[str]:
        return sorted(self.frame["label"].unique())


def scores(records: Records, key: str = RETURN) -> list[Scores]:
    """Score each run at a common step: the last that as many runs of its environment as possible cover.

    A single short run does not shorten the budget of all others, and runs that have not finished do not
    decide it. Runs that are first evaluated after that step are compared among themselves, at a step of
    their own. Environments are pooled if the range of their returns is known (RETURN_BOUNDS), and
    separate otherwise.
    """
    points = records.metric(key)
    if points.empty:
        return []
    notes = _missing_note(records, points, key)
    finished = records.runs.loc[records.runs["status"] == "FINISHED", "run_id"]
    main, later = [], []
    for env, of_env in points.groupby("env", sort=True):
        first, *others = _groups(str(env), of_env, set(finished), notes)
        main.append(first)
        later += [(f"{env}, env step {budget}", frame) for budget, frame in others]
    frame = _finite(pd.concat([frame for _, frame in main]), notes)
    named = [(name, _finite(rows, notes)) for name, rows in later]
    separate = [Scores(name, rows, "return", notes) for name, rows in named if len(rows)]
    return _by_environment(frame, notes) + separate


def _by_environment(frame: pd.DataFrame, notes: list[str]) -> list[Scores]:
    """Pool the environments if the range of their returns is known, else separate them."""
    environments = sorted(frame["env"].unique())
    if not environments:
        return []
    if len(environments) == 1:
        return [Scores(environments[0], frame, "return", notes)]
    bounds = {env: _bounds(env) for env in environments}
    if all(bounds.values()):
        low, high = (frame["env"].map({e: b[i] for e, b in bounds.items() if b}) for i in (0, 1))
        pooled = frame.assign(score=aggregate.normalize(frame["score"], low, high))
        return [Scores("all environments", pooled, "normalized return", notes)]
    notes.append("Environments are not pooled: the range of returns is not known for all of them.")
    return [Scores(env, frame[frame["env"] == env], "return", notes) for env in environments]


def _groups(
    env: str, points: pd.DataFrame, finished: set[str], notes: list[str]
) -> list[tuple[int, pd.DataFrame]]:
    """Return (step, scores at that step) of the runs of an environment; later groups have later steps."""
    spans = points.groupby("run_id", sort=False)["env_step"].agg(["min", "max"])
    groups = []
    while len(spans):
        is_finished = spans.index.isin(finished)
        budget = _budget(spans[is_finished] if is_finished.any() else spans)
        early, late = spans["max"] < budget, spans["min"] > budget
        counted = spans.index[~early & ~late]
        longest = int(spans.loc[counted, "max"].max())
        if budget < longest:
            which = "most" if early.any() else "all"
            notes.append(
                f"{env}: compared at env step {budget}, the last that {which} runs reached "
                f"(the longest run has {longest} steps)."
            )
        if early.any():
            excluded = statements.count(int(early.sum()), "run")
            notes.append(
                f"{env}: {excluded} left out of the scores: ended before env step {budget}."
            )
        if late.any():
            other = statements.count(int(late.sum()), "run")
            notes.append(
                f"{env}: {other} first evaluated after env step {budget}: compared separately."
            )
        # Points are sorted by step, so the last one within the budget is the score.
        reached = points[points["run_id"].isin(counted) & (points["env_step"] <= budget)]
        rows = reached.groupby("run_id", sort=False).tail(1)[["label", "env", "seed", "value"]]
        groups.append((budget, rows.rename(columns={"value": "score"})))
        spans = spans[late]
    return groups


def _finite(frame: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Drop scores that are not finite, with a note."""
    finite = np.isfinite(frame["score"])
    if not finite.all():
        count = statements.count(int((~finite).sum()), "run")
        notes.append(f"{count} without a finite return left out.")
    return frame[finite]


def _budget(spans: pd.DataFrame) -> int:
    """Return the last step between the first and last evaluation of as many runs as possible.

    Args:
        spans: columns `min` and `max`, the first and last step at which each run was evaluated.
    """
    first, last = np.sort(spans["min"].to_numpy()), np.sort(spans["max"].to_numpy())
    started = np.searchsorted(first, last, side="right")
    ended = np.searchsorted(last, last, side="left")
    covering = started - ended
    return int(last[covering == covering.max()][-1])


def _bounds(env: str) -> tuple[float, float] | None:
    return RETURN_BOUNDS.get(env) or (RETURN_BOUNDS["dmc:"] if env.startswith("dmc:") else None)


def _missing_note(records: Records, points: pd.DataFrame, key: str) -> list[str]:
    missing = len(records.runs) - points["run_id"].nunique()
    if missing == 0:
        return []
    return [f"{statements.count(missing, 'run')} left out of the scores: no {key}."]
