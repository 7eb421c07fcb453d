"""The headline metrics of a run, before and after it resumes."""

import pytest

from llmdreamer.tracking.spool import Spool
from llmdreamer.training.headline import Headline, headline_note


def test_headline_of_an_evaluation_has_its_return_and_the_area_so_far():
    headline = Headline(None)
    first = headline.results({"eval/return": 10.0, "eval/return_sd": 1.0}, 100)
    assert (first["return"], first["area_under_curve"], first["env_step"]) == (10.0, 10.0, 100.0)
    second = headline.results({"eval/return": 30.0}, 300)
    assert (second["return"], second["area_under_curve"]) == (30.0, 20.0)
    assert "return_best" not in second


def test_headline_of_the_best_policy_leaves_the_last_return():
    found = Headline(None).results({"eval/best_return": 7.0, "eval/best_return_sd": 0.0}, 100)
    assert found.keys() == {"return_best", "env_step", "minutes"}
    assert found["return_best"] == 7.0


def test_headline_of_other_metrics_is_empty():
    assert Headline(None).results({"episode/return": 3.0}, 5) == {}


def test_headline_of_a_resumed_run_continues_area_and_minutes(tmp_path):
    spool = Spool(tmp_path / "metrics.jsonl")
    spool.append({"eval/return": 10.0, "minutes": 2.0}, 100)
    spool.append({"minutes": 5.0}, 150)
    resumed = Headline(spool.path)
    found = resumed.results({"eval/return": 30.0}, 300)
    assert found["area_under_curve"] == 20.0
    assert found["minutes"] == pytest.approx(5.0, abs=1.0) and found["minutes"] >= 5.0


def test_headline_note_starts_with_the_return():
    newest = {"minutes": 1.25, "loss": 3.0, "env_step": 64.0, "return": 10.0}
    assert headline_note(newest) == "**return 10**, env_step 64, minutes 1.25"
