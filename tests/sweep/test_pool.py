"""What a driver says of its slots' time, and whom a signal reaches."""

import logging
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmdreamer.sweep import pool
from llmdreamer.sweep.launchers.base import Order
from llmdreamer.sweep.pool import Pool
from llmdreamer.sweep.run_source import RunTask
from llmdreamer.sweep.worker import Slot, WorkerOptions

BOARD = SimpleNamespace(mark_changed=lambda: None, refresh=lambda: None)


def test_a_slot_is_idle_only_while_there_is_something_to_start(monkeypatch, caplog):
    """Both slots work from 0 on, the one for 10 seconds, the other for 15. A second after the first has
    ended, it is known that nothing is to come."""
    now = 0.0
    monkeypatch.setattr(pool.time, "monotonic", lambda: now)
    slots = Pool([Slot(None, 1)] * 2, program=None)
    slots._free.clear()
    now = 10.0
    slots._count_unused(there_is_nothing=False)
    slots._free.append(Slot(None, 1))
    now = 11.0
    slots._count_unused(there_is_nothing=True)
    now = 15.0
    slots._busy = 10.0 + 15.0
    with caplog.at_level(logging.INFO, "llmdreamer"):
        slots._log_utilization(15.0)
    # 25 of the 30 seconds that two slots have, less the 4 in which one had nothing to start.
    line = "2 slots for 15 s, 96.2% at work, not counting 2 s a slot with nothing to start"
    assert caplog.messages == [line]


@dataclass
class Obedient:
    """A process that leaves when it is asked to, or has died at once."""

    code: int | None = None
    told: list[str] = field(default_factory=list)

    def poll(self) -> int | None:
        return self.code

    def terminate(self) -> None:
        self.told.append("SIGTERM")
        self.code = 128 + signal.SIGTERM

    def kill(self) -> None:
        self.told.append("SIGKILL")
        self.code = -signal.SIGKILL


@dataclass
class Endless:
    """Engine and source of runs without end. In the midst of `when`, Ctrl-C is typed, `times` times."""

    folder: Path
    when: str
    times: int = 1
    typed: bool = False
    jobs: list[Obedient] = field(default_factory=list)

    def start(self, order: Order) -> Obedient:
        dies = self.when == "start 2" and not self.jobs
        self.jobs.append(Obedient(-signal.SIGKILL if dies else None))
        self._reach(f"start {len(self.jobs)}")
        return self.jobs[-1]

    def next_task(self) -> RunTask:
        self._reach("next_task")
        return RunTask(self.folder / f"{len(self.jobs)}", [], {}, "a run", 0)

    def _reach(self, where: str) -> None:
        if where == self.when and not self.typed:
            self.typed = True
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)

    def should_stop(self, *_) -> bool:
        assert not self.typed, "nobody told this run"
        return False

    def record_outcome(self, *_) -> None: ...

    def close(self) -> None: ...

    def run(self, slots: int) -> None:
        program = WorkerOptions([], self, [], "eval/return", False, retries=3, stop_within=30)
        with pytest.raises(KeyboardInterrupt):
            Pool([Slot(None, 1)] * slots, program).run(self, BOARD)


@pytest.mark.parametrize(
    ("when", "slots", "told"),
    [
        ("next_task", 3, []),
        ("start 1", 3, [["SIGTERM"]]),
        ("start 2", 1, [[], ["SIGTERM"]]),  # of a run whose first process has died
    ],
)
def test_a_ctrl_c_in_the_midst_of_a_start_reaches_that_run_and_no_other_begins(
    tmp_path, when, slots, told
):
    endless = Endless(tmp_path, when)
    endless.run(slots)
    assert [job.told for job in endless.jobs] == told


def test_a_second_ctrl_c_in_the_midst_of_a_start_kills_that_run(tmp_path):
    endless = Endless(tmp_path, "start 1", times=2)
    endless.run(slots=3)
    assert [job.told for job in endless.jobs] == [["SIGKILL"]]
