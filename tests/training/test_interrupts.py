"""What is left of the signals' handlers when training is over."""

import signal

import pytest

from llmdreamer.training.interrupts import STOPPING, Interrupts, Stopped


@pytest.fixture(autouse=True)
def handlers():
    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    yield before
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_the_first_is_noted_and_the_handlers_come_back(handlers):
    with Interrupts() as interrupts:
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
    assert interrupts.received == signal.SIGUSR1
    assert {signum: signal.getsignal(signum) for signum in STOPPING} == handlers


def test_on_the_way_out_another_signal_does_not_change_the_exit_code(handlers):
    with pytest.raises(Stopped) as stopped, Interrupts():
        raise Stopped(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGUSR1)
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGINT) == handlers[signal.SIGINT]


def test_a_second_ctrl_c_interrupts_at_once():
    with pytest.raises(KeyboardInterrupt), Interrupts():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("earlier", [True, False])
def test_where_nothing_can_be_lost_the_first_ends_it_at_once(earlier):
    with pytest.raises(Stopped) as stopped, Interrupts() as interrupts:
        if earlier:
            signal.raise_signal(signal.SIGUSR1)
        interrupts.stop_immediately()
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == (138 if earlier else 143)
