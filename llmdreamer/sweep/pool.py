"""Runs the tasks of a source in slots, each in a process, and refills a slot as soon as it is free."""

from __future__ import annotations

import logging
import os
import signal
import time
from types import FrameType

from llmdreamer.sweep.progress import ProgressReporter
from llmdreamer.sweep.run_source import RunOutcome, RunSource, RunTask
from llmdreamer.sweep.worker import Slot, Worker, WorkerOptions

log = logging.getLogger(__name__)
PROCESS_POLL_SECONDS = 0.02
CURVE_POLL_SECONDS = 1.0
SOURCE_RETRY_SECONDS = 1.0  # pause before a source that had no task is asked again


class Pool:
    """Runs the tasks of a source, `len(slots)` at a time."""

    def __init__(self, slots: list[Slot], options: WorkerOptions) -> None:
        self._free = list(slots)
        self._slot_count = len(slots)
        self._options = options
        self._workers: list[Worker] = []
        self._next_request_at = 0.0
        self._signal: int | None = None
        self._kill_now = False  # a second signal came
        self._busy_seconds = 0.0  # slot-seconds in which a process ran
        self._unused_seconds = 0.0  # slot-seconds in which there was no task to start
        self._unused_since: float | None = None

    def run(self, source: RunSource, reporter: ProgressReporter) -> None:
        """Run all tasks. On the first Ctrl-C or SIGTERM the runs write checkpoints; a second kills them.

        Raises:
            KeyboardInterrupt, SystemExit: after such a signal, once all processes have ended.
        """
        self._source, self._reporter = source, reporter
        handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        started_at = time.monotonic()
        try:
            self._loop()
        finally:
            self._stop_remaining()
            self._source.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            self._log_utilization(time.monotonic() - started_at)
        if self._signal is not None:
            log.info("stopped; repeat the command to continue")
            if self._signal == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + self._signal)

    def _loop(self) -> None:
        curves_read_at = 0.0
        while True:
            self._collect_exits()
            if self._signal is None:
                self._fill()
            else:
                self._count_unused(no_task=True)
            if not self._workers and (self._signal is not None or self._source.is_done()):
                return
            if time.monotonic() - curves_read_at > CURVE_POLL_SECONDS:
                curves_read_at = time.monotonic()
                self._stop_by_curves()
            self._reporter.refresh()
            time.sleep(PROCESS_POLL_SECONDS)

    def _fill(self) -> None:
        while self._free and time.monotonic() >= self._next_request_at:
            task = self._source.next_task()
            self._count_unused(no_task=task is None)
            if self._signal is not None:  # it came meanwhile; `close` releases the task
                return
            if task is None:
                self._next_request_at = time.monotonic() + SOURCE_RETRY_SECONDS
                return
            worker = Worker(task, self._free[0], self._options)
            if worker.is_finished():  # its driver died before it recorded the end
                self._record_outcome(task, worker.finished())
                continue
            self._free.pop(0)
            worker.start()
            self._workers.append(worker)
            self._forward_signal()
            self._reporter.mark_changed()

    def _collect_exits(self) -> None:
        for worker in list(self._workers):
            if not worker.has_exited():
                continue
            outcome = worker.outcome(interrupted=self._signal is not None)
            if outcome is None and self._signal is None:
                log.warning("%s was killed; restarting it", worker.task.label)
                worker.start()
                self._forward_signal()
                continue
            self._count_unused(no_task=self._unused_since is not None)
            self._workers.remove(worker)
            self._free.append(worker.slot)
            self._busy_seconds += worker.seconds
            self._next_request_at = 0.0
            if outcome is not None:
                self._record_outcome(worker.task, outcome)

    def _record_outcome(self, task: RunTask, outcome: RunOutcome) -> None:
        log_line = log.error if outcome.kind == "failed" else log.info
        cause = f": {outcome.cause}" if outcome.cause else ""
        log_line("%s %s%s", outcome.kind, task.label, cause)
        self._source.record_outcome(task, outcome)
        self._reporter.mark_changed()

    def _count_unused(self, *, no_task: bool) -> None:
        """Add up the time of free slots without a task.

        Call it each time the source was asked, and before another slot becomes free.
        """
        now = time.monotonic()
        if self._unused_since is not None:
            self._unused_seconds += len(self._free) * (now - self._unused_since)
        self._unused_since = now if no_task else None

    def _stop_by_curves(self) -> None:
        for worker in self._workers:
            if worker.is_stopping():
                worker.kill_if_late()
                continue
            if self._signal is not None:
                continue
            curves = worker.read_curves()
            if curves is not None and self._source.should_stop(worker.task, curves):
                log.info("stop %s", worker.task.label)
                worker.stop(is_final=True)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._kill_now, self._signal = self._signal is not None, number
        self._source.interrupt()
        self._forward_signal()

    def _forward_signal(self) -> None:
        """Stop or kill the runs if a signal came.

        Call it after each start, too: a signal that arrives during a start finds no process yet.
        """
        if self._signal is None:
            return
        for worker in self._workers:
            if self._kill_now:
                worker.kill()
            elif not worker.is_stopping():
                worker.stop(is_final=False)

    def _stop_remaining(self) -> None:
        """Stop what still runs when an error ends the sweep, so that all runs leave checkpoints."""
        for worker in self._workers:
            worker.stop(is_final=False)
        while self._workers:
            for worker in list(self._workers):
                worker.kill_if_late()
                if worker.has_exited():
                    self._workers.remove(worker)
                    self._busy_seconds += worker.seconds
            time.sleep(PROCESS_POLL_SECONDS)

    def _log_utilization(self, seconds: float) -> None:
        """Log the share of the slots' time in which they ran a process; nothing if none ran."""
        self._count_unused(no_task=False)
        if self._busy_seconds == 0:
            return
        available = max(self._busy_seconds, seconds * self._slot_count - self._unused_seconds)
        slots = "1 slot" if self._slot_count == 1 else f"{self._slot_count} slots"
        message = f"{slots} for {seconds:.0f} s, {100 * self._busy_seconds / available:.1f}% busy"
        if (unused := self._unused_seconds / self._slot_count) >= 1:
            message += f", not counting {unused:.0f} s per slot with nothing to start"
        log.info(message)


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
