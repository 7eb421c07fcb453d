"""Test which failures of a run become one line."""

import signal
from pathlib import Path

import pytest
from refusals import refused

from llmdreamer.training.failures import ExitedEarly, OutOfMemory, explain_failures
from llmdreamer.utils.errors import Stopped


def test_sys_exit_inside_a_run_is_a_failure_with_exit_code_1():
    with refused(ExitedEarly, "sys.exit(0)") as error, explain_failures(Path(), lambda: None):
        raise SystemExit(0)
    assert error.value.exit_code == 1


def test_stop_on_a_signal_keeps_its_exit_code():
    with pytest.raises(Stopped) as stopped, explain_failures(Path(), lambda: None):
        raise Stopped(signal.SIGTERM)
    assert stopped.value.code == 143


def test_error_without_a_text_is_named_by_its_class():
    with refused(OutOfMemory, "MemoryError"), explain_failures(Path(), lambda: None):
        raise MemoryError
