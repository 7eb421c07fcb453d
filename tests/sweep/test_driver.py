"""What a driver makes of errors that are nobody's mistake."""

import errno
import re
from types import SimpleNamespace

import pytest
from optuna.exceptions import StorageInternalError

from llmdreamer.cli.explain import explain
from llmdreamer.sweep.driver import DiskFull, full, make_slots
from llmdreamer.sweep.settings import SweeperSettings
from llmdreamer.utils.errors import ConfigError


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


def test_a_full_disk_is_known_from_a_file_or_from_the_database():
    assert full(raised(OSError(errno.ENOSPC, "No space left"))) == "[Errno 28] No space left"
    cause = RuntimeError("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT]")
    said = full(raised(StorageInternalError("An exception is raised"), raised(cause)))
    assert said == "(sqlite3.OperationalError) database or disk is full"


def test_another_error_is_not_one_of_a_full_disk():
    assert full(raised(OSError(errno.EACCES, "Permission denied"))) is None
    assert full(raised(ValueError("a mess"), raised(KeyError("x")))) is None


def test_a_full_disk_is_one_line_and_no_mistake_in_what_was_typed():
    told = explain(raised(DiskFull("the disk is full")), task=lambda: None)
    assert (told.line, told.exit_code) == ("the disk is full", 1)


def devices(**settings) -> list[str]:
    """What the processes in the slots see."""
    slots = make_slots(SimpleNamespace(settings=SweeperSettings(**settings), launcher=None))
    return [slot.environment()["CUDA_VISIBLE_DEVICES"] for slot in slots]


def test_each_device_takes_as_many_runs_as_it_may(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sorted(devices(devices=[0, 3], per_device=2)) == ["0", "0", "3", "3"]


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("4,5", ["4", "5"]),
        ("GPU-8932f937, MIG-GPU-1a2b/1/0,3", ["GPU-8932f937", "MIG-GPU-1a2b/1/0"]),
    ],
)
def test_devices_are_those_that_the_driver_was_given(monkeypatch, given, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert devices(devices=[0, 1]) == seen


@pytest.mark.parametrize(
    ("given", "count"),
    [("4", 1), ("4,-1,5", 1), ("", 0), ("NoDevFiles", 0)],  # CUDA stops at the first strange one
)
def test_a_device_beyond_those_that_the_driver_was_given_is_refused(monkeypatch, given, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    told = f"hydra.sweeper.devices=[0, 1]: CUDA_VISIBLE_DEVICES={given} names {count}"
    with pytest.raises(ConfigError, match=re.escape(told)):
        devices(devices=[0, 1])
