"""Chooses the runs of a whole store that count, among smoke tests and runs that were cut short."""

from __future__ import annotations

import pandas as pd

UNFINISHED = "counts although it has not finished"
"""Part of the note on a run that counts before its end."""


def select(runs: pd.DataFrame) -> tuple[list[bool], list[str]]:
    """Return for each run whether it counts, and notes on what was decided.

    - Finished runs count. So do the longest and the newest run of an environment in any state, unless a
      pruner ended them.
    - A smoke test does not count: a run that made no more updates than the warmup of its learning rate
      takes. If an environment has nothing but smoke tests, they count.

    Args:
        runs: name, env, status (PRUNED for a pruned run), started (epoch seconds), sweep (None outside of
            sweeps), steps (environment steps reached), updates (made), warmup (updates, as text).
    """
    warmup = pd.to_numeric(runs["warmup"], errors="coerce")
    is_pruned = runs["status"] == "PRUNED"
    smoke = (runs["updates"] <= warmup) & ~is_pruned
    trained = ~smoke & ~is_pruned
    smoke &= trained.groupby(runs["env"]).transform("any")
    unfinished: dict[int, str] = {}
    for _, group in runs[~smoke & ~is_pruned].groupby("env", sort=True):
        for column, reason in (("started", "newest"), ("steps", "longest")):
            best = group.sort_values([column, "started"], kind="stable").iloc[-1]
            if best["status"] != "FINISHED":
                unfinished[int(best.name)] = reason
    chosen = (runs["status"] == "FINISHED") & ~smoke
    chosen[list(unfinished)] = True
    notes = [_unfinished_note(runs.loc[index], reason) for index, reason in unfinished.items()]
    left_out = runs[smoke & (runs["status"] == "FINISHED")]
    if len(left_out):
        notes.append(_smoke_note(left_out))
    return chosen.tolist(), notes


def _unfinished_note(run: pd.Series, reason: str) -> str:
    state = f"{run['status']} at env step {run['steps']:,}"
    return f"{run['name']} {UNFINISHED} ({state}): it is the {reason} run of {run['env']}."


def _smoke_note(runs: pd.DataFrame) -> str:
    """Say how many smoke tests are left out, by sweep, and by which rule."""
    counts = runs["sweep"].where(runs["sweep"].notna(), "").value_counts().sort_index()
    listed = [f"{count} of the sweep {name}" for name, count in counts.items() if name]
    if alone := counts.get("", 0):
        listed.append(f"{alone} outside of sweeps")
    number = "1 smoke test is" if len(runs) == 1 else f"{len(runs)} smoke tests are"
    return (
        f"{number} left out ({', '.join(listed)}; at most {runs['steps'].max():,} env steps): they made no "
        "more updates than the warmup of their learning rate takes."
    )
