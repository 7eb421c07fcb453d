"""The name of a run, and the means that its journal logs of several updates."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from llmdreamer.tracking.trial import TRIAL_VARIABLE
from llmdreamer.training.journal import Journal, describe_run
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


def test_run_is_named_by_its_variant_in_a_sweep_and_else_by_its_arm(compose, monkeypatch):
    config = compose("seed=3")
    monkeypatch.delenv(TRIAL_VARIABLE, raising=False)
    assert describe_run(config, Path(), []).name == "scratch gpt2-XS CartPole-v1 seed=3"
    monkeypatch.setenv(TRIAL_VARIABLE, json.dumps({"trial": "4", "variant": "#4 lr=0.1"}))
    info = describe_run(config, Path(), [])
    assert info.name == "#4 lr=0.1" and info.tags["trial"] == "4"
