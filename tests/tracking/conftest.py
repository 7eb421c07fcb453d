"""Real SQLite stores, copied from one that is created once: MLflow needs seconds to create one."""

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llmdreamer.tracking.record import RunFiles, RunRecord, save
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
    """The address of a port at which nothing listens: it was free a moment ago."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def hung_uri() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "run"


@pytest.fixture
def start_record(folder: Path) -> Callable[..., RunFiles]:
    """Write the record that a Tracker writes when it starts, without the upload process."""

    def start(uri: str, **changes: object) -> RunFiles:
        files = RunFiles(folder)
        record = RunRecord(uri, "test", "run", {"seed": 0}, {"arm": "scratch"}, time.time())
        for name, value in changes.items():
            setattr(record, name, value)
        save(record, files.run_record)
        return files

    return start
