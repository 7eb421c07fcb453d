"""Environment variables that a driver or torchrun sets, with values that neither would write."""

import json

import pytest
from refusals import refused

from llmdreamer.sweep.run_lock import DRIVER_VARIABLE, hold_run_lock
from llmdreamer.tracking.trial import TRIAL_VARIABLE, trial_tags
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.torchrun import LAUNCH_VARIABLE, check_variables

NOT_A_PID = ["", "x", "-1", "1.5", "0x10", " 7", "1e3", "null", "٣", "9" * 5000, "1\n2"]
NOT_TAGS = [
    "",
    "x",
    "null",
    "3",
    "[]",
    '["a"]',
    '"a"',
    "{",
    '{"trial": 3}',
    '{"a": null}',
    "[" * 99999,
]
TORCHRUN = {
    "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500",
}  # fmt: skip


@pytest.mark.parametrize("value", NOT_A_PID)
def test_driver_variable_that_is_no_process_id_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv(DRIVER_VARIABLE, value)
    with refused(ConfigError, DRIVER_VARIABLE, "unset"), hold_run_lock(tmp_path):
        pass
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("value", NOT_TAGS)
def test_trial_variable_that_is_no_mapping_of_texts_is_refused(monkeypatch, value):
    monkeypatch.setenv(TRIAL_VARIABLE, value)
    with refused(ConfigError, TRIAL_VARIABLE, "unset"):
        trial_tags()


def test_trial_variable_of_a_driver_is_read(monkeypatch):
    monkeypatch.delenv(TRIAL_VARIABLE, raising=False)
    assert trial_tags() is None
    monkeypatch.setenv(TRIAL_VARIABLE, json.dumps({"sweep": "s", "trial": "3"}))
    assert trial_tags() == {"sweep": "s", "trial": "3"}


@pytest.mark.parametrize("name", TORCHRUN)
@pytest.mark.parametrize("value", [None, "x", "-1", "", "1" * 30])
def test_incomplete_variables_of_torchrun_are_refused(monkeypatch, name, value):
    monkeypatch.setenv(LAUNCH_VARIABLE, "job")
    variables = TORCHRUN | {name: value}
    if name == "MASTER_ADDR":  # any text may be a host
        variables[name] = None
    for key, text in variables.items():
        monkeypatch.delenv(key, raising=False)
        if text is not None:
            monkeypatch.setenv(key, text)
    with refused(ConfigError, LAUNCH_VARIABLE, name, "torchrun"):
        check_variables()


def test_complete_variables_of_torchrun_are_accepted(monkeypatch):
    for key, text in {LAUNCH_VARIABLE: "job", **TORCHRUN}.items():
        monkeypatch.setenv(key, text)
    check_variables()
