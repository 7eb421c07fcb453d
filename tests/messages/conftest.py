"""The option that rewrites the file of expected messages."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-messages", action="store_true", help="rewrite tests/messages/messages.txt"
    )


@pytest.fixture
def update_messages(request: pytest.FixtureRequest) -> bool:
    # In a run of all tests this file is read after the options are parsed.
    return bool(request.config.getoption("--update-messages", default=False))
