"""Ray's side of a sweep: a process that starts tasks for its driver.

A process of its own, which can be killed. Ray may wait for minutes for a cluster that does not answer,
lets nobody interrupt it, and aborts the process that it fails in.

Requests come on standard input, answers go to standard output, both pickled. The first request is
`(arguments of ray.init, options of ray.remote)`; its answer is `None`, or a line that says why not.
After that come `("start", key, arguments of execute)` and `("cancel", key)`, and of tasks that are over
`(key, why)` goes back, with an empty `why` of those that came to their end. The input's end is the driver's.
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

from llmdreamer.sweep.launchers.mailbox import LOOK_EVERY, execute, last_of

Inbox = queue.Queue[tuple[Any, ...] | None]


def main() -> int:
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Ray prints
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the driver's
    init, options = pickle.load(requests)  # noqa: S301  (from our parent)
    init = alone(init)
    try:
        import ray

        ray.init(log_to_driver=False, logging_level=logging.ERROR, **init)
        # Ray's own retry would neither know the checkpoint nor count.
        task = ray.remote(**{"max_retries": 0, **options})(execute)
    except Exception as error:  # noqa: BLE001  (Ray raises bare ones, too)
        _answer(answers, (str(error).splitlines() or [type(error).__name__])[0])
        return 1
    _answer(answers, None)
    inbox: Inbox = queue.Queue()
    threading.Thread(target=_listen, args=(requests, inbox), daemon=True).start()
    _serve(ray, task, inbox, answers)
    ray.shutdown()
    return 0


def alone(init: dict[str, Any]) -> dict[str, Any]:
    """Arguments of ray.init, made before Ray is imported: a cluster that starts here is this process's alone.

    Whoever reaches Ray's ports has code run, and they are open on every address of the machine; so whoever
    asks for something must have a token, which only this process and what it starts are told. `local`,
    because Ray else looks for a cluster that an earlier one has left word of, dead or alive.
    """
    if init.get("address", "local") != "local" or os.environ.get("RAY_ADDRESS"):
        return init
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    return {"address": "local", "include_dashboard": False, **init}


def _serve(ray: Any, task: Any, inbox: Inbox, answers: BinaryIO) -> None:
    tasks: dict[str, Any] = {}
    while True:
        try:
            request = inbox.get(timeout=LOOK_EVERY)
        except queue.Empty:
            pass
        else:
            if request is None:
                return
            kind, key, *arguments = request
            if kind == "start":
                tasks[key] = task.remote(*arguments)
            elif key in tasks:
                ray.cancel(tasks[key], force=True)
        if tasks:
            over, _ = ray.wait([*tasks.values()], num_returns=len(tasks), timeout=0)
            for key in [key for key, one in tasks.items() if one in over]:
                _answer(answers, (key, _why(ray, tasks.pop(key))))


def _why(ray: Any, task: Any) -> str:
    try:
        ray.get(task)
    except Exception as error:  # noqa: BLE001  (whatever was raised at the place, besides Ray's own)
        return last_of(error) or type(error).__name__
    return ""


def _listen(requests: BinaryIO, inbox: Inbox) -> None:
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
        pass  # the driver has died: the input says so, too


if __name__ == "__main__":
    sys.exit(main())
