"""Measure the analysis: its time, and the coverage of its intervals. Run by hand.

    python benchmarks/analysis.py speed      # with 200 runs x 100 curves x 100 points in a SQLite store
    python benchmarks/analysis.py coverage   # and false positives, on normal samples

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
from llmdreamer.analysis.section import save_section
from llmdreamer.analysis.statements import ALPHA
from llmdreamer.tracking import ensure_experiment

RUNS, CURVES, POINTS = 200, 100, 100
ARMS = ["gru", "scratch", "pretrained-full", "pretrained-lora", "random-frozen-lora"]


def speed() -> None:
    with tempfile.TemporaryDirectory() as name:
        uri = f"sqlite:///{name}/mlflow.db"
        fill(Path(name) / "mlflow.db", ensure_experiment(uri, "llmdreamer"))
        clocks = [(time.perf_counter(), time.process_time())]
        records = load(uri)
        clocks.append((time.perf_counter(), time.process_time()))
        for section in compare.all_sections(load(uri, keys=compare.KEYS)):
            save_section(section, Path(name) / "report")
        clocks.append((time.perf_counter(), time.process_time()))
    assert len(records.runs) == RUNS and len(records.curves) == RUNS * CURVES * POINTS
    print(f"{RUNS} runs x {CURVES} curves x {POINTS} points = {len(records.curves):,} rows")
    stages = ("load all curves", "load the compared curves, save all figures as PNG and SVG")
    for stage, before, after in zip(stages, clocks, clocks[1:], strict=False):
        wall, cpu = (end - begin for begin, end in zip(before, after, strict=True))
        print(f"{stage}: {wall:.1f} s wall time, {cpu:.1f} s CPU time")


def fill(database: Path, experiment: str) -> None:
    """Write directly into MLflow's tables; its client would take an hour."""
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


def p_value(first: np.ndarray, second: np.ndarray) -> float:
    return aggregate.permutation_p(first, second, max_permutations=2000)


def coverage(times: int = 2000) -> None:
    """Estimate how often a 95% interval covers the truth, and how often two equal arms seem to differ."""
    print("n  interval covers 0  |  equal arms: interval excludes 0, and p < 0.05 too")
    rng = np.random.default_rng(0)
    for n in (3, 5, 10):
        covered = excluded = significant = 0
        for _ in range(times):
            first, second = rng.normal(size=n), rng.normal(size=n)
            single = aggregate.bootstrap(first, repetitions=500)
            covered += bool(single.low <= 0 <= single.high)
            difference = aggregate.bootstrap(first - second, statistic=np.mean, repetitions=500)
            excludes_zero = bool(difference.low > 0 or difference.high < 0)
            excluded += excludes_zero
            significant += excludes_zero and p_value(first, second) < ALPHA
        print(
            f"{n:2d}  {covered / times:.3f}  |  {excluded / times:.3f}  {significant / times:.3f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=["speed", "coverage"])
    sys.exit({"speed": speed, "coverage": coverage}[parser.parse_args().which]())
