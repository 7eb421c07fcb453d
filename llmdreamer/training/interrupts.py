"""Converts the signals of a scheduler into a request to stop at the next step."""

from __future__ import annotations

import signal
import threading
from types import FrameType

from llmdreamer.utils.errors import Stopped

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
"""SIGHUP: the terminal was closed, or the connection to it was lost."""


class Interrupts:
    """Within the context, the first SIGTERM, SIGUSR1, SIGHUP or Ctrl-C is only recorded in `received`.

    A signal that is ignored stays ignored, as SIGHUP is under `nohup`.

    After `raise_at_once` a signal raises `Stopped` at once. A Ctrl-C after an earlier signal interrupts.
    After `Stopped` has left the context, all but Ctrl-C are ignored, so that the exit code is that of
    the first signal. Ctrl-C works as before.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._immediate = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        # Python allows handlers in the main thread only. In other threads signals keep their default action.
        if threading.current_thread() is threading.main_thread():
            self._before = {
                signum: signal.signal(signum, self._note)
                for signum in STOPPING
                if signal.getsignal(signum) is not signal.SIG_IGN
            }
        return self

    def raise_at_once(self) -> None:
        """From now on, raise `Stopped` as soon as a signal arrives. Call it once everything is saved.

        Raises:
            Stopped: if a signal has been received already; otherwise when one arrives.
        """
        self._immediate = True
        if self.received is not None:
            raise Stopped(self.received)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        for signum, before in self._before.items():
            ending = isinstance(error, Stopped) and signum != signal.SIGINT
            signal.signal(signum, signal.SIG_IGN if ending else before)  # type: ignore[arg-type]

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is None:  # the exit code is that of the first signal
            self.received = signum
            if self._immediate:
                raise Stopped(signum)
