"""Fault campaigns against tracking, with real stores. Their figures are in docs/log.md.

    python benchmarks/tracking.py writers [--writers 8] [--records 2000]
    python benchmarks/tracking.py server [--away 20] [--hang]

- `writers`: several runs start at once on a new SQLite database, and each logs its records.
- `server`: an MLflow server gets SIGKILL while a run logs a record every 20 ms, and is started again. With
  `--hang` it gets SIGSTOP and SIGCONT instead.

No record may be lost or duplicated, and logging may not block the run.
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

TIMEOUT_SECONDS = 900  # of any step
MAX_LOG_SECONDS = 0.05  # of CPU time that a call of `log` may take


def main() -> int:
    args = parse(
        __doc__,
        {"writers": {"writers": 8, "records": 2000}, "server": {"away": 20.0, "hang": False}},
    )
    with tempfile.TemporaryDirectory(prefix="tracking-") as name:
        if args.campaign == "writers":
            return writers(Path(name), args.writers, args.records)
        return server(Path(name), args.away, hang=args.hang)


def writers(folder: Path, count: int, records: int) -> int:
    """Check that the store has every record of every writer once."""
    uri, start_time = f"sqlite:///{folder}/mlflow.db", time.monotonic()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=write, args=(folder / str(n), uri, records)) for n in range(count)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT_SECONDS)
    codes = [process.exitcode for process in processes]
    stored, distinct, finished = count_stored(folder / "mlflow.db")
    expected = count * records
    print(f"{codes.count(0)} of {count} exited with 0, {finished} FINISHED in the store;", end=" ")
    print(
        f"{stored} of {expected} records, {distinct} distinct, {time.monotonic() - start_time:.0f} s"
    )
    return 0 if stored == distinct == expected and finished == count else 1


def write(folder: Path, uri: str, records: int) -> None:
    """Log records as fast as possible, then wait for their upload."""
    tracker = Tracker.start(folder, RunInfo(folder.name, {}, {}), uri, "campaign")
    for step in range(records):
        tracker.log({"value": step / records}, step)
    tracker.finish("FINISHED", timeout=TIMEOUT_SECONDS)


def server(folder: Path, away: float, *, hang: bool) -> int:
    """Log a record every 20 ms before, during and after the server's absence."""
    database = folder / "mlflow.db"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    process = serve(database, port)
    tracker = Tracker.start(folder / "run", RunInfo("run", {}, {}), uri, "campaign")
    max_wall, max_cpu, step = 0.0, 0.0, 0

    def log_until(deadline: float) -> None:
        nonlocal max_wall, max_cpu, step
        while time.monotonic() < deadline:
            wall, cpu = time.perf_counter(), time.thread_time()
            tracker.log({"value": float(step), "other": -float(step)}, step)
            max_wall = max(max_wall, time.perf_counter() - wall)
            max_cpu = max(max_cpu, time.thread_time() - cpu)
            step += 1
            time.sleep(0.02)

    deadline = time.monotonic() + TIMEOUT_SECONDS
    while count_stored(database)[0] == 0:  # until the first upload
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
    back, left = time.monotonic(), count_stored(database)[0]
    while count_stored(database)[0] == left:  # until the waiting records are uploaded
        assert time.monotonic() < back + TIMEOUT_SECONDS, "the uploads did not resume"
        log_until(time.monotonic() + 1)
    waited = time.monotonic() - back
    tracker.finish("FINISHED", timeout=TIMEOUT_SECONDS)
    # If a busy server refused the run's last upload, `sync` uploads the rest.
    synced = count_stored(database)[2] == 0 and sync([str(folder / "run")]) == 0
    stored, distinct, finished = count_stored(database)
    away_by = "stopped" if hang else "killed"
    print(f"{step} records, {before} of them before the server was {away_by};")
    print(f"{stored} of {2 * step} metrics are in the store, {distinct} distinct;")
    print(f"uploads resumed {waited:.0f} s after the server answered again; synced: {synced};")
    print(
        f"the longest call of `log` took {1e3 * max_wall:.1f} ms, {1e3 * max_cpu:.1f} ms of CPU time"
    )
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # Not the wall time: on a busy machine it depends on other processes.
    return (
        0 if stored == distinct == 2 * step and finished == 1 and max_cpu < MAX_LOG_SECONDS else 1
    )


def serve(database: Path, port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server; return once it answers."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--backend-store-uri", f"sqlite:///{database}"],
        cwd=database.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return process
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise TimeoutError("the server does not answer")


def count_stored(database: Path) -> tuple[int, int, int]:
    """Count the metrics in the store, those that differ in run, key or step, and the finished runs."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=60) as store:
        (stored,) = store.execute("SELECT count(*) FROM metrics").fetchone()
        query = "SELECT count(*) FROM (SELECT DISTINCT run_uuid, key, step FROM metrics)"
        (distinct,) = store.execute(query).fetchone()
        (finished,) = store.execute("SELECT count(*) FROM runs WHERE status='FINISHED'").fetchone()
    return stored, distinct, finished


if __name__ == "__main__":
    sys.exit(main())
