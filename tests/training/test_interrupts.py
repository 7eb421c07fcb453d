"""Signal handlers during and after training."""

import signal

import pytest

from llmdreamer.training.interrupts import STOPPING, Interrupts
from llmdreamer.utils.errors import Stopped


@pytest.fixture(autouse=True)
def handlers():
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    yield before
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_first_signal_is_recorded_and_handlers_are_restored(handlers):
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
    assert interrupts.received == signal.SIGUSR1
    assert {signum: signal.getsignal(signum) for signum in STOPPING} == handlers


def test_signal_during_shutdown_does_not_change_the_exit_code(handlers):
    with pytest.raises(Stopped) as stopped, Interrupts():
        raise Stopped(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGUSR1)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGINT) == handlers[signal.SIGINT]


def test_second_ctrl_c_interrupts_immediately():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("earlier", [True, False])
def test_first_signal_stops_immediately_when_nothing_can_be_lost(earlier):
    with pytest.raises(Stopped) as stopped, Interrupts() as interrupts:
        if earlier:
            signal.raise_signal(signal.SIGUSR1)
        interrupts.raise_at_once()
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == (138 if earlier else 143)


def test_signal_that_is_ignored_stays_ignored():
    """`nohup` ignores SIGHUP, so that a run outlives its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            signal.raise_signal(signal.SIGHUP)
        assert interrupts.received is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
