"""Pauses between the attempts of a resumed run, in hand-written records."""

import pandas as pd
import pytest

from llmdreamer.analysis.pauses import RATE, UPDATES, find_pauses, paused_before


def records(*rows: tuple[int, int, float], run: str = "a") -> pd.DataFrame:
    """Create records of training from (time in s, updates so far, updates per second)."""
    frame = pd.DataFrame(
        [
            {
                "run_id": run,
                "key": key,
                "env_step": 2 * updates,
                "time_ms": 1000 * at,
                "value": value,
            }
            for at, updates, rate in rows
            for key, value in ((UPDATES, float(updates)), (RATE, rate))
        ]
    )
    return frame.astype({"run_id": "category", "key": "category"})


def test_time_that_no_update_explains_is_a_pause():
    """25 updates at 5/s take 5 s, of the 3605 s between the records."""
    points = records((10, 25, 5.0), (15, 50, 5.0), (3620, 75, 5.0), (3625, 100, 5.0))
    assert find_pauses(points).to_dict("records") == [
        {"run_id": "a", "resumed_ms": 3_615_000.0, "seconds": 3600.0}
    ]
    assert list(paused_before(points)) == [0.0] * 4 + [3600.0] * 4


def test_slow_updates_are_no_pause():
    points = records((10, 25, 5.0), (910, 50, 25 / 900))
    assert find_pauses(points).empty


def test_pauses_add_up():
    points = records((10, 25, 5.0), (115, 50, 5.0), (320, 75, 5.0))
    assert list(paused_before(points)) == pytest.approx([0, 0, 100, 100, 300, 300])


def test_points_without_records_of_training_have_no_pause():
    points = records((10, 25, 5.0), (3620, 50, 5.0))
    assert not paused_before(points[points["key"] == UPDATES]).any()
