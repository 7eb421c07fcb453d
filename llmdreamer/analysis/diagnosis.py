"""Sections on what an agent predicts beside the truth: ends, values, and advantages of single actions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from llmdreamer.analysis.section import Section
from llmdreamer.analysis.style import format_axis, single_axes
from llmdreamer.evaluation.diagnosis import Advantage, Diagnosis, Visits

GROUPS = 8  # rows of the table of values
COLOR = "#0072B2"


def ends(visits: Visits) -> Section:
    """Show P(continue) and the critic on steps that terminated an episode, and on all others."""
    rows = []
    for name, mask in (("terminated", visits.terminated), ("other", ~visits.terminated)):
        if mask.any():
            rows.append(
                {
                    "time steps": name,
                    "number": int(mask.sum()),
                    "P(continue)": visits.continue_prob[mask].mean().round(3),
                    "true": 0 if name == "terminated" else 1,
                    "critic": visits.value[mask].mean().round(2),
                    "true return": visits.true_return[mask].mean().round(2),
                }
            )
    text = [] if visits.terminated.any() else ["No episode terminated."]
    return Section("Predicted ends", text, [pd.DataFrame(rows)])


def values(visits: Visits) -> Section:
    """Compare the critic with the true discounted return, in groups of equal size by true return."""
    title = "Critic and true return"
    value, truth = visits.value, visits.true_return
    order = np.array_split(np.argsort(truth, kind="stable"), min(GROUPS, len(truth)))
    table = pd.DataFrame(
        {
            "true return": [truth[group].mean().round(2) for group in order],
            "critic": [value[group].mean().round(2) for group in order],
            "critic, sd": [value[group].std().round(2) for group in order],
            "time steps": [len(group) for group in order],
        }
    )
    error = float(np.sqrt(np.square(value - truth).mean()))
    varies = value.std() > 0 and truth.std() > 0
    correlation = f"{np.corrcoef(value, truth)[0, 1]:.3f}" if varies else "undefined"
    text = [
        f"RMS error {error:.2f}, correlation {correlation}, over {len(value)} time steps.",
        "Each row is a group of time steps with similar true returns. A critic that is right follows them.",
    ]
    return Section(title, text, [table], {"critic": _scatter(visits)})


def advantages(results: list[Advantage]) -> Section:
    """Compare, state by state, the imagined and the true advantage of the mode over another action."""
    title = "Advantages of single actions"
    if not results:
        reason = "The environment has no verified snapshot, so its states cannot be repeated."
        return Section(title, [reason])
    rows = []
    for advantage in results:
        (true, true_error), (imagined, imagined_error) = advantage.true, advantage.imagined
        rows.append(
            {
                "step": advantage.step,
                "critic": round(advantage.value, 2),
                "true return": advantage.mode.true.mean().round(2),
                "true advantage": round(true, 2),
                "± se": round(true_error, 2),
                "imagined advantage": round(imagined, 2),
                "± se ": round(imagined_error, 2),
                "true sd": advantage.mode.true.std(ddof=1).round(2),
                "imagined sd": advantage.mode.imagined.std(ddof=1).round(2),
            }
        )
    clear = [a for a in results if abs(a.true[0]) > 2 * a.true[1]]
    agree = sum(a.true[0] * a.imagined[0] > 0 for a in clear)
    branches = len(results[0].mode.true)
    text = [
        f"The true advantage is beyond two standard errors in {len(clear)} of {len(results)} states; the"
        f" imagined one has the same sign in {agree} of these.",
        "Advantage: return of the policy's most likely action minus that of another one, the policy"
        f" following. {branches} true and {branches} imagined trajectories an action. sd: of one return.",
    ]
    return Section(title, text, [pd.DataFrame(rows)])


def all_sections(results: Diagnosis) -> list[Section]:
    """Return the sections on ends, values and advantages."""
    return [ends(results.visits), values(results.visits), advantages(results.advantages)]


def _scatter(visits: Visits) -> Figure:
    figure, axis = single_axes()
    truth, value = visits.true_return, visits.value
    axis.plot(truth, value, ".", color=COLOR, markersize=3, alpha=0.4, rasterized=True)
    bounds = [min(truth.min(), value.min()), max(truth.max(), value.max())]
    axis.plot(bounds, bounds, color="#555555", lw=1)
    format_axis(axis, "true discounted return", "critic", "each point is a time step; line: equal")
    return figure
