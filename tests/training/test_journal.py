"""The means that a journal logs of several updates."""

import math
from types import SimpleNamespace

import pytest
import torch

from llmdreamer.training.journal import Journal
from llmdreamer.training.optimizer import SKIPPED

NAN = math.nan


@pytest.fixture
def journal(monkeypatch):
    monkeypatch.setattr(Journal, "_costs", lambda self: {})
    return Journal(SimpleNamespace(updates=0, env_step=0), SimpleNamespace(take_metrics=dict), None)


def updates(**columns):
    """Updates with the values of each metric, none of them skipped."""
    steps = zip(*columns.values(), strict=True)
    return [
        {SKIPPED: torch.tensor(0.0)}
        | {name: torch.tensor(value) for name, value in zip(columns, values, strict=True)}
        for values in steps
    ]


def test_metric_of_terminated_steps_is_averaged_over_updates_that_have_some(journal):
    means = journal.log_updates(updates(loss=[1.0, 2.0, 6.0], value_terminated=[NAN, 4.0, 8.0]))
    assert means == {"loss": 3.0, "value_terminated": 6.0}


def test_metric_of_terminated_steps_is_left_out_without_any(journal):
    means = journal.log_updates(updates(loss=[1.0, 2.0], value_terminated=[NAN, NAN]))
    assert means == {"loss": 1.5}


def test_nan_of_another_metric_stays_visible(journal):
    means = journal.log_updates(updates(loss=[1.0, NAN], value_terminated=[2.0, 2.0]))
    assert math.isnan(means["loss"]) and means["value_terminated"] == 2.0
