"""Convert between the path of a SQLite file and its database URL, for any file name."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from llmdreamer.utils.errors import ConfigError

SQLITE_PREFIX = "sqlite:///"


def sqlite_url(path: Path) -> str:
    """Return the database URL of a file.

    Raises:
        ConfigError: if no URL can express the path.
    """
    # Quote only where needed. SQLAlchemy decodes `%2F` since version 2.1, and `?` cannot be in a path at all.
    for text in (str(path), quote(str(path))):
        if sqlite_path(SQLITE_PREFIX + text) == path:
            return SQLITE_PREFIX + text
    raise ConfigError(
        f"{path}: no database URL can express this path; rename it or set hydra.sweeper.storage"
    )


def sqlite_path(url: str) -> Path:
    """Return the file of a database URL."""
    from sqlalchemy import make_url  # the import takes half a second

    return Path(make_url(url).database or "")
