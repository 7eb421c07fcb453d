"""The process that runs Ray for a driver: it starts tasks, cancels them, and reports those that are over.

It is a separate process so that it can be killed: Ray may wait for minutes for a cluster that does not
answer, cannot be interrupted, and aborts its process on failure.

Requests arrive on standard input, answers go to standard output; both are pickled. The first request is
`(arguments of ray.init, options of ray.remote)`, its answer `None` or an error line. Later requests are
`("start", key, arguments of execute)` and `("cancel", key)`. For each task that is over, the answer is
`(key, reason)`; the reason is empty if the task succeeded. The input ends when the driver closes it or dies.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import secrets
import signal
import sys
import threading
from typing import Any, BinaryIO

from llmdreamer.sweep.launchers.mailbox import POLL_SECONDS, execute, last_error_line

Inbox = queue.Queue[tuple[Any, ...] | None]


def main() -> int:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Ray prints to standard output, which is the answer pipe
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver handles Ctrl-C
    init, options = pickle.load(requests)  # noqa: S301  (from our parent)
    init = isolated_init_args(init)
    try:
        import ray

        ray.init(log_to_driver=False, logging_level=logging.ERROR, **init)
        # Ray's own retries would not resume from the checkpoint, nor count as retries of the sweep.
        task = ray.remote(**{"max_retries": 0, **options})(execute)
    except Exception as error:  # noqa: BLE001  (Ray also raises plain exceptions)
        _answer(answers, (str(error).splitlines() or [type(error).__name__])[0])
        return 1
    _answer(answers, None)
    inbox: Inbox = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests, inbox), daemon=True).start()
    _serve(ray, task, inbox, answers)
    ray.shutdown()
    return 0


def isolated_init_args(init: dict[str, Any]) -> dict[str, Any]:
    """Return arguments of ray.init under which a new cluster belongs to this process alone.

    Call it before Ray is imported. Ray's ports are open on every address of the machine, and a client may
    run code through them. A token that only this process and its children know is therefore required.
    The address is `local`, because Ray otherwise looks for a cluster that an earlier process has recorded,
    alive or not. An existing cluster (`address` or RAY_ADDRESS) is used as it is.
    """
    if init.get("address", "local") != "local" or os.environ.get("RAY_ADDRESS"):
        return init
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {"address": "local", "include_dashboard": False, **init}


def _serve(ray: Any, execute_task: Any, inbox: Inbox, answers: BinaryIO) -> None:
    tasks: dict[str, Any] = {}
    while True:
        try:
            request = inbox.get(timeout=POLL_SECONDS)
        except queue.Empty:
            pass
        else:
            if request is None:
                return
            kind, key, *arguments = request
            if kind == "start":
                tasks[key] = execute_task.remote(*arguments)
            elif key in tasks:
                ray.cancel(tasks[key], force=True)
        if tasks:
            finished, _ = ray.wait([*tasks.values()], num_returns=len(tasks), timeout=0)
            for key in [key for key, task in tasks.items() if task in finished]:
                _answer(answers, (key, _failure_reason(ray, tasks.pop(key))))


def _failure_reason(ray: Any, task: Any) -> str:
    try:
        ray.get(task)
    except Exception as error:  # noqa: BLE001  (Ray's errors, and any that the task raised)
        return last_error_line(error) or type(error).__name__
    return ""


def _read_requests(requests: BinaryIO, inbox: Inbox) -> None:
    while True:
        try:
            inbox.put(pickle.load(requests))  # noqa: S301  (from our parent)
        except EOFError:
            inbox.put(None)
            return


def _answer(answers: BinaryIO, answer: object) -> None:
    try:
        pickle.dump(answer, answers)
        answers.flush()
    except BrokenPipeError:
        pass  # the driver has died; the input ends too


if __name__ == "__main__":
    sys.exit(main())
