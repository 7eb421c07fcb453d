"""Campaigns against the record of runs, with real stores; the figures they gave are in docs/log.md.

    python benchmarks/tracking.py writers [--writers 8] [--rows 2000]
    python benchmarks/tracking.py server [--away 20] [--hang]

`writers`: that many runs begin at once on a fresh SQLite database, and each logs its rows. `server`: an
MLflow server is SIGKILLed under a run that logs a row each 20 ms, and comes back; with `--hang` it is
stopped (SIGSTOP) and goes on. Either must lose nothing, tell nothing twice, and hold nobody up.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from campaigns import parse

from llmdreamer.cli.sync import main as sync
from llmdreamer.tracking import RunInfo, Tracker

LIMIT = 900  # seconds for anything to happen
HELD_UP = 0.05  # seconds of work that logging a row may cost the run


def main() -> int:
    given = parse(
        __doc__,
        {"writers": {"writers": 8, "rows": 2000}, "server": {"away": 20.0, "hang": False}},
    )
    with tempfile.TemporaryDirectory(prefix="tracking-") as name:
        if given.campaign == "writers":
            return writers(Path(name), given.writers, given.rows)
        return server(Path(name), given.away, hang=given.hang)


def writers(folder: Path, count: int, rows: int) -> int:
    """Every row of every writer, once."""
    uri, began = f"sqlite:///{folder}/mlflow.db", time.monotonic()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=write, args=(folder / str(n), uri, rows)) for n in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT)
    codes = [process.exitcode for process in processes]
    stored, distinct, finished = held(folder / "mlflow.db")
    wanted = count * rows
    print(f"{codes.count(0)} of {count} ended well, {finished} FINISHED in the store;", end=" ")
    print(f"{stored} of {wanted} rows, {distinct} distinct, {time.monotonic() - began:.0f} s")
    return 0 if stored == distinct == wanted and finished == count else 1


def write(folder: Path, uri: str, rows: int) -> None:
    """One run: its rows as fast as they come, and time enough to upload them."""
    tracker = Tracker.start(folder, RunInfo(folder.name, {}, {}), uri, "campaign")
    for step in range(rows):
        tracker.log({"value": step / rows}, step)
    tracker.finish("FINISHED", timeout=LIMIT)


def server(folder: Path, away: float, *, hang: bool) -> int:
    """A row each 20 ms before, while, and after the server is away."""
    database = folder / "mlflow.db"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    process = serve(database, port)
    tracker = Tracker.start(folder / "run", RunInfo("run", {}, {}), uri, "campaign")
    slowest, busiest, step = 0.0, 0.0, 0

    def log_until(happened: float) -> None:
        nonlocal slowest, busiest, step
        while time.monotonic() < happened:
            clock, cpu = time.perf_counter(), time.thread_time()
            tracker.log({"value": float(step), "other": -float(step)}, step)
            slowest = max(slowest, time.perf_counter() - clock)
            busiest = max(busiest, time.thread_time() - cpu)
            step += 1
            time.sleep(0.02)

    deadline = time.monotonic() + LIMIT
    while held(database)[0] == 0:  # it has begun to upload
        assert time.monotonic() < deadline, "nothing was uploaded"
        log_until(time.monotonic() + 1)
    before = step
    os.killpg(process.pid, signal.SIGSTOP if hang else signal.SIGKILL)
    log_until(time.monotonic() + away)
    if hang:
        os.killpg(process.pid, signal.SIGCONT)
    else:
        process.wait()
        process = serve(database, port)
    back, left = time.monotonic(), held(database)[0]
    while held(database)[0] == left:  # what had waited is uploaded while the run goes on
        assert time.monotonic() < back + LIMIT, "the uploads did not go on"
        log_until(time.monotonic() + 1)
    waited = time.monotonic() - back
    tracker.finish("FINISHED", timeout=LIMIT)
    # What a busy server has not taken in the last attempt of the run's own is replayed.
    replayed = held(database)[2] == 0 and sync([str(folder / "run")]) == 0
    stored, distinct, finished = held(database)
    away_by = "stopped" if hang else "killed"
    print(f"{step} rows, {before} of them before the server was {away_by};")
    print(f"{stored} of {2 * step} metrics are in the store, {distinct} distinct;")
    print(f"uploads went on {waited:.0f} s after the server answered again; replayed: {replayed};")
    print(f"the longest call of log took {1e3 * slowest:.1f} ms, {1e3 * busiest:.1f} ms of work")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # By the clock a busy machine holds up whom it likes.
    return 0 if stored == distinct == 2 * step and finished == 1 and busiest < HELD_UP else 1


def serve(database: Path, port: int) -> subprocess.Popen[bytes]:
    """MLflow's own server, once it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--backend-store-uri", f"sqlite:///{database}"],
        cwd=database.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return process
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError("the server does not answer")


def held(database: Path) -> tuple[int, int, int]:
    """Metrics in the store, how many of them differ in run, key or step, and finished runs."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60) as store:
        (stored,) = store.execute("SELECT count(*) FROM metrics").fetchone()
        query = "SELECT count(*) FROM (SELECT DISTINCT run_uuid, key, step FROM metrics)"
        (distinct,) = store.execute(query).fetchone()
        (finished,) = store.execute("SELECT count(*) FROM runs WHERE status='FINISHED'").fetchone()
    return stored, distinct, finished


if __name__ == "__main__":
    sys.exit(main())
