"""Local database servers that run for the duration of a test."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Both servers refuse to run as root; in a container they run as the user nobody.
USER = 65534 if os.geteuid() == 0 else None
PACKAGES = {"postgresql": "postgresql", "mysql": "mariadb-server"}  # Debian's
DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql"}
PROGRAMS = {"postgresql": ("initdb", "pg_ctl"), "mysql": ("mariadb-install-db", "mariadbd")}


def find_program(name: str) -> str | None:
    """Find a program of a server. Debian installs some of them outside the PATH."""
    debian_paths = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    return path or (str(debian_paths[-1]) if debian_paths else None)


def install_hint(kind: str) -> str | None:
    """Return None if the server is installed, else how to install it."""
    is_installed = all(map(find_program, PROGRAMS[kind]))
    return None if is_installed else f"no {kind} server: apt-get install {PACKAGES[kind]}"


@dataclass
class DatabaseServer:
    """A server with an empty database at `url`. `stop` ends it at once, as a crash does."""

    url: str
    start: Callable[[], object]
    stop: Callable[[], object]


@contextmanager
def run_server(kind: str) -> Iterator[DatabaseServer]:
    """Run a server for the duration of the context."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        if USER is not None:
            os.chown(folder, USER, USER)
        server = (_postgresql if kind == "postgresql" else _mysql)(folder)
        try:
            yield server
        finally:
            server.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _run_program(folder: Path, name: str, *arguments: str) -> None:
    command = (str(find_program(name)), *arguments)
    subprocess.run(command, user=USER, cwd=folder, check=True, capture_output=True, timeout=300)


def _postgresql(folder: Path) -> DatabaseServer:
    data, log, port = str(folder / "data"), str(folder / "log"), free_port()
    _run_program(folder, "initdb", "-D", data, "-A", "trust", "-U", "me")
    options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"

    def start() -> None:
        _run_program(
            folder, "pg_ctl", "-D", data, "-l", log, "-o", options, "-w", "-t", "300", "start"
        )

    def stop() -> None:
        _run_program(folder, "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")

    start()
    return DatabaseServer(f"postgresql+psycopg://me@127.0.0.1:{port}/postgres", start, stop)


def _mysql(folder: Path) -> DatabaseServer:
    data, port = f"--datadir={folder}/data", free_port()
    base = f"--basedir={Path(str(find_program('mariadbd'))).parents[1]}"
    no_password = "--auth-root-authentication-method=normal"
    _run_program(folder, "mariadb-install-db", "--no-defaults", base, data, no_password)
    address = [f"--port={port}", f"--socket={folder}/socket", "--bind-address=127.0.0.1"]
    servers: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with open(folder / "log", "ab") as log:
            servers.append(subprocess.Popen(
                [str(find_program("mariadbd")), "--no-defaults", base, data, *address, "--skip-name-resolve"],
                user=USER, cwd=folder, stdout=log, stderr=log,
            ))  # fmt: skip
        _make_database(servers[-1], port)

    def stop() -> None:
        servers[-1].kill()
        servers[-1].wait()

    start()
    return DatabaseServer(f"mysql+pymysql://root@127.0.0.1:{port}/study", start, stop)


def _make_database(server: "subprocess.Popen[bytes]", port: int) -> None:
    import pymysql

    while server.poll() is None:
        try:
            with pymysql.connect(host="127.0.0.1", port=port, user="root") as connection:
                connection.cursor().execute("CREATE DATABASE IF NOT EXISTS study")
            return
        except pymysql.err.OperationalError:  # the server is not ready yet
            time.sleep(0.1)
    raise RuntimeError("mariadbd exited before it was ready")
