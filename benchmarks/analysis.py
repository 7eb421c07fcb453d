"""How long the analysis takes, and how far its intervals are to be trusted. Run by hand.

    python benchmarks/analysis.py speed      # 200 runs x 100 curves x 100 points in a SQLite store
    python benchmarks/analysis.py coverage   # of intervals, and false alarms, on normal draws

The figures are in docs/log.md.
"""

import argparse
import sqlite3
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from llmdreamer.analysis import aggregate, compare
from llmdreamer.analysis.load import RETURN, load
from llmdreamer.analysis.part import save
from llmdreamer.analysis.sentence import ALPHA
from llmdreamer.tracking import prepare

RUNS, CURVES, POINTS = 200, 100, 100
ARMS = ["gru", "scratch", "pretrained-full", "pretrained-lora", "random-frozen-lora"]


def speed() -> None:
    with tempfile.TemporaryDirectory() as name:
        uri = f"sqlite:///{name}/mlflow.db"
        fill(Path(name) / "mlflow.db", prepare(uri, "llmdreamer"))
        clocks = [(time.perf_counter(), time.process_time())]
        records = load(uri)
        clocks.append((time.perf_counter(), time.process_time()))
        for part in compare.everything(load(uri, keys=compare.KEYS)):
            save(part, Path(name) / "report")
        clocks.append((time.perf_counter(), time.process_time()))
    assert len(records.runs) == RUNS and len(records.curves) == RUNS * CURVES * POINTS
    print(f"{RUNS} runs x {CURVES} curves x {POINTS} points = {len(records.curves):,} rows")
    names = ("load every curve", "load what is compared, all figures as PNG and SVG")
    for what, before, after in zip(names, clocks, clocks[1:], strict=False):
        wall, busy = (end - begin for begin, end in zip(before, after, strict=True))
        print(f"{what}: {wall:.1f} s, of which the processor worked {busy:.1f} s")


def fill(database: Path, experiment: str) -> None:
    """Straight into MLflow's tables: its client would take an hour."""
    rng = np.random.default_rng(0)
    with sqlite3.connect(database) as store:
        for number in range(RUNS):
            run, arm = f"{number:032x}", ARMS[number % len(ARMS)]
            store.execute(
                "INSERT INTO runs (run_uuid, name, status, start_time, end_time, lifecycle_stage,"
                " experiment_id, artifact_uri) VALUES (?, ?, 'FINISHED', 0, 1, 'active', ?, '')",
                (run, f"run {number}", experiment),
            )
            tags = {"arm": arm, "env": "CartPole-v1", "seed": str(number // len(ARMS))}
            tags["backbone"] = "gru" if arm == "gru" else "gpt2"
            store.executemany(
                "INSERT INTO tags (key, value, run_uuid) VALUES (?, ?, ?)",
                [(key, value, run) for key, value in tags.items()],
            )
            for curve in range(CURVES):
                key = RETURN if curve == 0 else f"metric/{curve}"
                values = np.cumsum(rng.exponential(size=POINTS))
                rows = [(key, v, 1000 * i, run, 100 * i) for i, v in enumerate(values.tolist())]
                store.executemany(
                    "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)"
                    " VALUES (?, ?, ?, ?, ?, 0)",
                    rows,
                )


def coverage(times: int = 2000) -> None:
    """How often a 95% interval holds the truth, and how often two equal arms are told apart."""
    print("n  interval holds 0  |  equal arms: interval leaves out 0, and p < 0.05 as well")
    rng = np.random.default_rng(0)
    for n in (3, 5, 10):
        held = alarms = both = 0
        for _ in range(times):
            one, two = rng.normal(size=n), rng.normal(size=n)
            alone = aggregate.bootstrap(one, repetitions=500)
            held += bool(alone.low <= 0 <= alone.high)
            pair = aggregate.bootstrap(one - two, statistic=np.mean, repetitions=500)
            apart = bool(pair.low > 0 or pair.high < 0)
            alarms += apart
            both += apart and aggregate.permutation_p(one, two, most=2000) < ALPHA
        print(f"{n:2d}  {held / times:.3f}  |  {alarms / times:.3f}  {both / times:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=["speed", "coverage"])
    sys.exit({"speed": speed, "coverage": coverage}[parser.parse_args().which]())
