"""Database servers of our own on loopback, for as long as a test takes."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Neither server runs as root: in a container, they run as somebody else.
USER = 65534 if os.geteuid() == 0 else None
PACKAGES = {"postgresql": "postgresql", "mysql": "mariadb-server"}  # Debian's
DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql"}
PROGRAMS = {"postgresql": ("initdb", "pg_ctl"), "mysql": ("mariadb-install-db", "mariadbd")}


def found(name: str) -> str | None:
    """A program of a server's: Debian keeps them off some PATHs."""
    debians = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    there = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return there or (str(debians[-1]) if debians else None)


def lacking(kind: str) -> str | None:
    """What is to be installed before such a server can be started."""
    is_there = all(map(found, PROGRAMS[kind]))
    return None if is_there else f"no {kind} server here: apt-get install {PACKAGES[kind]}"


@contextmanager
def started(kind: str) -> Iterator[str]:
    """The URL of an empty database."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        if USER is not None:
            os.chown(folder, USER, USER)
        with (_postgresql if kind == "postgresql" else _mysql)(folder) as url:
            yield url


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _command(folder: Path, name: str, *words: str) -> None:
    program = (str(found(name)), *words)
    subprocess.run(program, user=USER, cwd=folder, check=True, capture_output=True, timeout=300)


@contextmanager
def _postgresql(folder: Path) -> Iterator[str]:
    data, log, port = str(folder / "data"), str(folder / "log"), free_port()
    _command(folder, "initdb", "-D", data, "-A", "trust", "-U", "me")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
    _command(folder, "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "-t", "300", "start")
    try:
        yield f"postgresql+psycopg://me@127.0.0.1:{port}/postgres"
    finally:
        _command(folder, "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


@contextmanager
def _mysql(folder: Path) -> Iterator[str]:
    data, port = f"--datadir={folder}/data", free_port()
    base = f"--basedir={Path(str(found('mariadbd'))).parents[1]}"
    unsafe = "--auth-root-authentication-method=normal"  # no password, on loopback
    _command(folder, "mariadb-install-db", "--no-defaults", base, data, unsafe)
    where = [f"--port={port}", f"--socket={folder}/socket", "--bind-address=127.0.0.1"]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [str(found("mariadbd")), "--no-defaults", base, data, *where, "--skip-name-resolve"],
            user=USER, cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _make_database(server, port)
        yield f"mysql+pymysql://root@127.0.0.1:{port}/study"
    finally:
        server.terminate()
        server.wait()


def _make_database(server: "subprocess.Popen[bytes]", port: int) -> None:
    import pymysql

    while server.poll() is None:
        try:
            with pymysql.connect(host="127.0.0.1", port=port, user="root") as connection:
                connection.cursor().execute("CREATE DATABASE study")
            return
        except pymysql.err.OperationalError:  # not yet
            time.sleep(0.1)
    raise RuntimeError("mariadbd has ended")
