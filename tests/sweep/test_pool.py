"""What a driver says of its slots' time."""

import logging

from llmdreamer.sweep import pool
from llmdreamer.sweep.pool import Pool
from llmdreamer.sweep.process import Slot


def test_a_slot_is_idle_only_while_there_is_something_to_start(monkeypatch, caplog):
    """Both slots work from 0 on, the one for 10 seconds, the other for 15. A second after the first has
    ended, it is known that nothing is to come."""
    now = 0.0
    monkeypatch.setattr(pool.time, "monotonic", lambda: now)
    slots = Pool([Slot(None, 1)] * 2, program=None)
    slots._free.clear()
    now = 10.0
    slots._count_spare(there_is_nothing=False)
    slots._free.append(Slot(None, 1))
    now = 11.0
    slots._count_spare(there_is_nothing=True)
    now = 15.0
    slots._busy = 10.0 + 15.0
    with caplog.at_level(logging.INFO, "llmdreamer"):
        slots._tell_load(15.0)
    # 25 of the 30 seconds that two slots have, less the 4 in which one had nothing to start.
    line = "2 slots for 15 s, 96.2% at work, not counting 2 s a slot with nothing to start"
    assert caplog.messages == [line]
