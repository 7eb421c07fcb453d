"""Test that no secret leaves through a log line or a nested record."""

import logging
import time

import pytest

from llmdreamer.utils import redact
from llmdreamer.utils.redact import RedactingFormatter, redact_message, redact_values


def test_formatter_redacts_message_arguments_and_traceback(monkeypatch):
    monkeypatch.setattr(redact, "_values", set())
    redact.remember_secrets({"env": {"kwargs": {"api_key": "hunter2secret", "token": "short"}}})
    redact.remember_secrets("postgresql://u:other%2Fsecret@h/db?sslpassword=thirdsecret")
    try:
        raise OSError("login with hunter2secret at http://u:pass/word@h failed")
    except OSError as error:
        info = (OSError, error, error.__traceback__)
    args = ("other/secret", "thirdsecret")
    record = logging.LogRecord("x", logging.ERROR, "", 1, "%s %s", args, info)
    text = RedactingFormatter("%(message)s").format(record)
    assert text.startswith("*** ***") and "Traceback" in text and "u:***@h" in text
    assert not any(secret in text for secret in ("hunter2secret", "word@", *args))
    assert redact_message("a short word") == "a short word"


def test_nested_values_under_a_secret_key_are_redacted():
    value = {
        "credentials": {"user": "u", "pin": 5},
        "n": 1,
        "list": [{"password": 7}],
        "token": None,
    }
    assert redact_values(value) == {
        "credentials": "***",
        "n": 1,
        "list": [{"password": "***"}],
        "token": None,
    }


@pytest.mark.parametrize(
    "piece", ["a", ".a", "token", "a://", "a://b:", "proxy=", "proxy=a:", "--", "pwd.", "a://b@ "]
)
def test_time_to_redact_is_linear_in_the_length_of_a_word(piece):
    started = time.process_time()
    redact_message(piece * 20_000)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("1http://u:p/w@h", "1http://u:***@h"),
        ("see a://b and c://u:p@h", "see a://b and c://u:***@h"),
        ("proxy=proxy=u:p@h", "proxy=proxy=u:***@h"),
        ("proxy=x:https_proxy=u:p@h", "proxy=x:***@h"),
        ("proxy=host:3128 mail me@home", "proxy=host:3128 mail me@home"),
    ],
)
def test_password_in_an_odd_word_is_redacted(text, redacted):
    assert redact_message(text) == redacted
