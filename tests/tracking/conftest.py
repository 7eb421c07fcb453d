"""Real SQLite stores, copied from one that is made once: MLflow takes seconds to make one."""

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmdreamer.tracking.record import RunFiles, Wanted, save
from llmdreamer.tracking.store import connect


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fresh") / "mlflow.db"
    connect(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(fresh_database: Path, tmp_path: Path) -> str:
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def dead_uri() -> str:
    """A port at which nothing listens: it was free a moment ago."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def hung_uri() -> Iterator[str]:
    """A server that accepts and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "run"


@pytest.fixture
def described(folder: Path) -> Callable[..., RunFiles]:
    """Write what a Tracker writes when it starts, without the process that uploads."""

    def describe(uri: str, **changes: object) -> RunFiles:
        files = RunFiles(folder)
        wanted = Wanted(uri, "test", "run", {"seed": 0}, {"arm": "scratch"}, time.time())
        for name, value in changes.items():
            setattr(wanted, name, value)
        save(wanted, files.wanted)
        return files

    return describe
