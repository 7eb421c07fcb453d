"""Check the facts in an error message, not its wording: tests/messages pins the wordings."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def assert_names(message: str, *parts: object) -> None:
    """Fail unless the message contains every part, such as a key, a value or a path."""
    missing = [str(part) for part in parts if str(part) not in message]
    assert not missing, f"{message!r} does not name {missing}"


@contextmanager
def refused(
    error: type[BaseException], *parts: object, exact: bool = True
) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Expect an error of this class with a one-line message that contains every part.

    Args:
        error: the class; with `exact`, a subclass does not count.
        parts: texts that the message must contain.
    """
    assert parts, "give at least one part of the message"
    with pytest.raises(error) as caught:
        yield caught
    assert not exact or caught.type is error
    message = str(caught.value)
    assert "\n" not in message
    assert_names(message, *parts)
