"""The URL of a study's SQLite file, whatever its folder is called, and the file of such a URL."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from llmdreamer.utils.errors import ConfigError

SQLITE = "sqlite:///"


def url_of(path: Path) -> str:
    """Raises ConfigError if no URL says that path."""
    # As it is, where that will do. SQLAlchemy reads `%2F` as a slash since 2.1, and never a `?`.
    for text in (str(path), quote(str(path))):
        if path_of(SQLITE + text) == path:
            return SQLITE + text
    raise ConfigError(
        f"{path} has a name that no database's URL can say: set hydra.sweeper.storage, or rename it"
    )


def path_of(url: str) -> Path:
    from sqlalchemy import make_url  # takes half a second

    return Path(make_url(url).database or "")
