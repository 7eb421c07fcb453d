"""The driver's slots and devices, and its errors when the disk is full."""

import errno
from types import SimpleNamespace

import pytest
from optuna.exceptions import StorageInternalError

from llmdreamer.cli.explain import explain
from llmdreamer.sweep.driver import (
    SweepInterrupted,
    disk_full_message,
    draw_studies,
    make_slots,
)
from llmdreamer.sweep.settings import SweeperSettings
from llmdreamer.utils.errors import ConfigError


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error from cause
    return caught.value


def test_full_disk_is_recognized_from_file_errors_and_database_errors():
    error = raised(OSError(errno.ENOSPC, "No space left"))
    assert disk_full_message(error) == "[Errno 28] No space left"
    cause = RuntimeError("(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT]")
    error = raised(StorageInternalError("An exception is raised"), raised(cause))
    assert disk_full_message(error) == "(sqlite3.OperationalError) database or disk is full"


def test_other_errors_are_not_taken_for_a_full_disk():
    assert disk_full_message(raised(OSError(errno.EACCES, "Permission denied"))) is None
    assert disk_full_message(raised(ValueError("invalid"), raised(KeyError("x")))) is None


def test_full_disk_is_reported_in_one_line_with_exit_code_1():
    report = explain(raised(SweepInterrupted("the disk is full")), task=lambda: None)
    assert (report.line, report.exit_code) == ("the disk is full", 1)


def drawn_studies(tmp_path, **settings):
    calls = []
    plan = SimpleNamespace(
        settings=SweeperSettings(**settings), folder=tmp_path, name="s", arms={"a": [], "b": []}
    )
    draw_studies(plan, lambda *call: calls.append(call), tmp_path / "figures")
    return calls


def test_study_is_drawn_from_its_storage_and_a_grid_is_not(tmp_path):
    figures = tmp_path / "figures"
    assert drawn_studies(tmp_path) == []
    assert drawn_studies(tmp_path, n_trials=2) == [(str(tmp_path), "s", figures)]
    assert drawn_studies(tmp_path, n_trials=2, storage="sqlite:///x.db", study_per_arm=True) == [
        ("sqlite:///x.db", f"s-{arm}", figures / arm) for arm in ("a", "b")
    ]


def slot_devices(**settings) -> list[str]:
    """Return the CUDA_VISIBLE_DEVICES of each slot."""
    plan = SimpleNamespace(settings=SweeperSettings(**settings), launcher=None)
    return [slot.environment()["CUDA_VISIBLE_DEVICES"] for slot in make_slots(plan)]


def test_each_device_gets_per_device_slots(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sorted(slot_devices(devices=[0, 3], per_device=2)) == ["0", "0", "3", "3"]


@pytest.mark.parametrize(
    ("variable", "devices"),
    [
        ("4,5", ["4", "5"]),
        ("GPU-8932f937, MIG-GPU-1a2b/1/0,3", ["GPU-8932f937", "MIG-GPU-1a2b/1/0"]),
    ],
)
def test_devices_are_counted_among_those_of_the_driver(monkeypatch, variable, devices):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert slot_devices(devices=[0, 1]) == devices


@pytest.mark.parametrize(
    ("variable", "count"),
    [("4", 1), ("4,-1,5", 1), ("", 0), ("NoDevFiles", 0)],  # CUDA stops at the first invalid one
)
def test_device_beyond_those_of_the_driver_is_refused(monkeypatch, variable, count):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    with pytest.raises(ConfigError) as refused:
        slot_devices(devices=[0, 1])
    assert f"hydra.sweeper.devices=[0, 1]: CUDA_VISIBLE_DEVICES={variable}" in str(refused.value)
    assert f"names {count}," in str(refused.value)
