"""Check what an error names, not its wording: the wordings are in tests/messages."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def assert_names(message: str, *parts: object) -> None:
    """Fail unless the message contains every part: a key, a value, a path, a suggestion."""
    missing = [str(part) for part in parts if str(part) not in message]
    assert not missing, f"{message!r} does not name {missing}"


@contextmanager
def refused(
    error: type[BaseException], *parts: object, exact: bool = True
) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """Expect an error of this class, in one line that names every part.

    Args:
        error: the class; with `exact`, a subclass does not count.
        parts: texts that the message must contain.
    """
    assert parts, "name what the user must see"
    with pytest.raises(error) as caught:
        yield caught
    assert not exact or caught.type is error
    message = str(caught.value)
    assert "\n" not in message
    assert_names(message, *parts)
