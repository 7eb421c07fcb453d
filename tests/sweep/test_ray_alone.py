"""The Ray cluster that a sweep starts for itself is nobody else's."""

import os
from importlib.util import find_spec

import pytest
from driving import Sweeping

from llmdreamer.sweep.rayhand import alone

TWO = ["seed=3,4", "hydra.sweeper.study_name=g"]


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


@pytest.mark.parametrize("init", [{}, {"address": "local"}, {"num_cpus": 2}])
def test_whoever_asks_it_for_something_must_have_its_token(init):
    assert alone(init) == {"address": "local", "include_dashboard": False} | init
    first = os.environ["RAY_AUTH_TOKEN"]
    assert os.environ["RAY_AUTH_MODE"] == "token" and len(first) == 64
    del os.environ["RAY_AUTH_MODE"]
    alone(init)
    assert os.environ["RAY_AUTH_TOKEN"] != first


def test_a_token_or_a_wish_for_none_stands(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    alone({})
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ


def test_a_cluster_of_somebody_else_is_as_they_made_it(monkeypatch):
    assert alone({"address": "auto"}) == {"address": "auto"}
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert alone({}) == {} and "RAY_AUTH_MODE" not in os.environ


@pytest.mark.skipif(find_spec("ray") is None, reason="no Ray: pip install 'llmdreamer[ray]'")
def test_a_grid_by_a_cluster_of_its_own(sweeping: Sweeping):
    place = ["hydra/launcher=ray", "hydra.launcher.init.num_cpus=2"]
    code, out = sweeping(*TWO, *place, STANDIN_STEP="0.1", RAY_USAGE_STATS_ENABLED="0")
    assert code == 0, out
    assert [row["state"] for row in sweeping.rows()] == ["finished"] * 2
