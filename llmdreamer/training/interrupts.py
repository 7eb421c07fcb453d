"""Turns a scheduler's signals into a request to stop at the next step."""

from __future__ import annotations

import signal
import threading
from types import FrameType

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(SystemExit):
    """Training stopped on a signal, checkpoint written: exit code 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class Interrupts:
    """While in context, the first SIGTERM, SIGUSR1 or Ctrl-C is only noted in `received`.

    After `at_once` it ends the run where it is. A second Ctrl-C interrupts at once, as usual. Once
    `Stopped` has left the context the others do nothing more, so that the process ends with the exit
    code of the first.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        # Python allows handlers in the main thread only; elsewhere signals keep their usual meaning.
        if threading.current_thread() is threading.main_thread():
            self._before = {signum: signal.signal(signum, self._note) for signum in STOPPING}
        return self

    def at_once(self) -> None:
        """From here on nothing is lost by a stop: do not wait for a step that looks at `received`.

        Raises:
            Stopped: if a signal has come already; else whenever one comes.
        """
        self._at_once = True
        if self.received is not None:
            raise Stopped(self.received)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        for signum, before in self._before.items():
            ending = isinstance(error, Stopped) and signum != signal.SIGINT
            signal.signal(signum, signal.SIG_IGN if ending else before)  # type: ignore[arg-type]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:  # the exit code tells the first
            self.received = signum
            if self._at_once:
                raise Stopped(signum)
