"""The pool's report of its slots' utilization, and which runs a signal reaches."""

import logging
import os
import re
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmdreamer.sweep import pool
from llmdreamer.sweep.launchers.base import ProcessSpec
from llmdreamer.sweep.pool import Pool
from llmdreamer.sweep.run_source import RunTask
from llmdreamer.sweep.worker import Slot, WorkerOptions

REPORTER = SimpleNamespace(mark_changed=lambda: None, refresh=lambda: None)


def test_slot_counts_as_idle_only_while_a_task_is_available(monkeypatch, caplog):
    """Both slots start at 0 s; one is busy for 10 s, the other for 15 s. At 11 s the source is empty."""
    now = 0.0
    monkeypatch.setattr(pool.time, "monotonic", lambda: now)
    slots = Pool([Slot(None, 1)] * 2, options=None)
    slots._free.clear()
    now = 10.0
    slots._count_unused(no_task=False)
    slots._free.append(Slot(None, 1))
    now = 11.0
    slots._count_unused(no_task=True)
    now = 15.0
    slots._busy_seconds = 10.0 + 15.0
    with caplog.at_level(logging.INFO, "llmdreamer"):
        slots._log_utilization(15.0)
    # Two slots have 30 s. One had nothing to start for 4 s, so 25 of 26 s are busy.
    (line,) = caplog.messages
    assert re.findall(r"[\d.]+", line) == ["2", "15", "96.2", "2"]


@dataclass
class FakeJob:
    """A process that exits when it is terminated, or that has died already."""

    code: int | None = None
    signals: list[str] = field(default_factory=list)

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.signals.append("SIGTERM")
        self.code = 128 + signal.SIGTERM

    def kill(self) -> None:
        self.signals.append("SIGKILL")
        self.code = -signal.SIGKILL


@dataclass
class EndlessSource:
    """A launcher and source of endless runs that sends Ctrl-C to the driver during one of its calls."""

    folder: Path
    interrupt_during: str  # "next_task" or "start N"
    times: int = 1
    interrupted: bool = False
    jobs: list[FakeJob] = field(default_factory=list)

    def start(self, process: ProcessSpec) -> FakeJob:
        dies = self.interrupt_during == "start 2" and not self.jobs
        self.jobs.append(FakeJob(-signal.SIGKILL if dies else None))
        self._interrupt_if_during(f"start {len(self.jobs)}")
        return self.jobs[-1]

    def next_task(self) -> RunTask:
        self._interrupt_if_during("next_task")
        return RunTask(self.folder / f"{len(self.jobs)}", [], {}, "a run", 0)

    def _interrupt_if_during(self, call: str) -> None:
        if call == self.interrupt_during and not self.interrupted:
            self.interrupted = True
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)

    def should_stop(self, *_) -> bool:
        assert not self.interrupted, "this run did not get the signal"
        return False

    def record_outcome(self, *_) -> None: ...

    def interrupt(self) -> None: ...

    def close(self) -> None: ...

    def run(self, slots: int) -> None:
        options = WorkerOptions([], self, [], "eval/return", False, retries=3, stop_within=30)
        with pytest.raises(KeyboardInterrupt):
            Pool([Slot(None, 1)] * slots, options).run(self, REPORTER)


@pytest.mark.parametrize(
    ("interrupt_during", "slots", "signals"),
    [
        ("next_task", 3, []),
        ("start 1", 3, [["SIGTERM"]]),
        ("start 2", 1, [[], ["SIGTERM"]]),  # the restart of a run whose process has died
    ],
)
def test_ctrl_c_during_a_start_stops_that_run_and_starts_no_other(
    tmp_path, interrupt_during, slots, signals
):
    source = EndlessSource(tmp_path, interrupt_during)
    source.run(slots)
    assert [job.signals for job in source.jobs] == signals


def test_second_ctrl_c_during_a_start_kills_that_run(tmp_path):
    source = EndlessSource(tmp_path, "start 1", times=2)
    source.run(slots=3)
    assert [job.signals for job in source.jobs] == [["SIGKILL"]]
