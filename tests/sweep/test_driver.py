"""What a driver makes of errors that are nobody's mistake."""

import errno
from types import SimpleNamespace

import pytest
from optuna.exceptions import StorageInternalError

from llmdreamer.cli.explain import explain
from llmdreamer.sweep.driver import SweepHalted, full, make_slots
from llmdreamer.sweep.settings import Settings


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
    told = explain(raised(SweepHalted("the disk is full")), task=lambda: None)
    assert (told.line, told.exit_code) == ("the disk is full", 1)


def test_each_device_takes_as_many_runs_as_it_may():
    settings = Settings(devices=[0, 3], per_device=2)
    slots = make_slots(SimpleNamespace(settings=settings, launcher=None))
    assert sorted(slot.device for slot in slots) == [0, 0, 3, 3]
