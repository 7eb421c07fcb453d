"""Our curves beside published ones, and the table of published curves."""

from pathlib import Path

import pandas as pd
import pytest

from llmdreamer.analysis import (
    published,
)
from llmdreamer.analysis.load import RETURN, Records

ROOT = Path(__file__).parents[2]


def test_task_of_returns_the_published_name():
    for env in ("dmc:cartpole-balance", "dm_control/cartpole-balance-v0", "cartpole_balance"):
        assert published.task_of(env) == "cartpole_balance"


@pytest.fixture(scope="module")
def curves() -> pd.DataFrame:
    return published.read_published(ROOT / "analysis" / "data" / "dmc_proprio.csv")


def test_published_table_is_complete(curves: pd.DataFrame):
    assert len(curves) == 17_549
    assert curves.groupby("method")["task"].nunique().to_dict() == {
        "d4pg": 18,
        "dmpo": 18,
        "dreamerv3": 18,
        "ppo_fixhp": 18,
    }
    assert set(curves.groupby(["method", "task"])["seed"].nunique()) == {5}


def test_published_curves_are_shown_alone_without_own_runs(records: Records, curves: pd.DataFrame):
    section = published.against_published(records, curves)
    assert any("shown alone" in line for line in section.text)
    assert (
        len([a for a in section.figures["against-published"].axes if a.get_title(loc="left")]) == 4
    )


def test_own_curves_are_drawn_beside_published_ones(curves: pd.DataFrame):
    runs = pd.DataFrame(
        [
            {"run_id": str(s), "label": "scratch", "env": "dmc:cartpole-balance", "seed": s}
            for s in (0, 1)
        ]
    )
    points = [
        {"run_id": str(s), "key": RETURN, "env_step": step, "seconds": 0.0, "value": 100.0 + s}
        for s in (0, 1)
        for step in (20_000, 60_000)
    ]
    section = published.against_published(Records("", runs, pd.DataFrame(points)), curves)
    (axis,) = section.figures["against-published"].axes
    names = {text.get_text() for text in axis.texts}
    assert {"scratch (ours, n=2)", "DreamerV3 (n=5)"} <= names
    assert axis.get_xlim()[1] < 70_000  # up to the end of our runs
