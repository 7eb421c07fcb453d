"""The page of learning results, from run folders with known metrics."""

import importlib.util
import os
import sys
from pathlib import Path

import pandas as pd
import pytest

from llmdreamer.tracking.record import RunFiles, RunRecord, save
from llmdreamer.tracking.spool import Spool

SCRIPT = Path(os.environ["LLMDREAMER_ROOT"]) / "benchmarks" / "learning.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("learning", SCRIPT)
    module = sys.modules["learning"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield lambda *argv: run(module, argv)
    del sys.modules["learning"]


def run(module, argv):
    before, sys.argv = sys.argv, [str(SCRIPT), *map(str, argv)]
    try:
        return module.main()
    finally:
        sys.argv = before


def write_run(root, name, returns, best, *, seed=None, cell="a", status="FINISHED"):
    """Write the folder of a run that was evaluated at steps 100, 200, ..."""
    files = RunFiles(root / name)
    seed = name.rpartition("-")[2] if seed is None else seed
    tags = {"seed": seed, "cell": cell, "arm": "scratch", "env": "Toy-v0", "commit": "c0ffee"}
    tags |= {"host": "here", "overrides": f"output_root=/data/runs seed={seed}"}
    ended = None if status is None else 3600.0
    save(RunRecord("uri", "x", name, {}, tags, 0.0, status, ended), files.run_record)
    spool = Spool(files.metrics)
    for number, value in enumerate(returns, 1):
        spool.append({"episode/return": 7.0}, 100 * number - 50)
        spool.append({"eval/return": value}, 100 * number)
    if best is not None:
        spool.append({"eval/best_return": best}, 100 * len(returns))
    spool.close()


def test_learning_page_lists_every_run_and_its_label(main, tmp_path, capsys):
    write_run(tmp_path, "a-b-0", [10.0, 40.0], 35.0)
    write_run(tmp_path, "a-b-1", [30.0, 20.0], 25.0)
    write_run(tmp_path, "c-0", [5.0, 0.955], None, cell="b")
    write_run(tmp_path, "c-1", [5.0], None, cell="b", status=None)
    out = tmp_path / "page"
    assert main(tmp_path, "--out", out, "--title", "Toys", "--reach", "30") == 0
    assert capsys.readouterr().out == f"{out / 'README.md'}\n"
    text = (out / "README.md").read_text()
    assert text.startswith("# Toys\n")
    assert "| a-b | 2 | 30 [20, 40] | 40, 20 | 35, 25 | 200, 100 | 1.00 |" in text
    assert "| c | 1 | 0.955 | 0.955 | - | - | 1.00 |" in text
    assert "- c-1 is left out: it has not finished (running)." in text
    assert "\n# a-b, at c0ffee\npython run.py seed=0\npython run.py seed=1\n" in text
    curves = pd.read_csv(out / "curves.csv")
    assert curves["return"].tolist() == [10.0, 40.0, 30.0, 20.0, 5.0, 0.955]
    assert curves["env_step"].tolist() == [100, 200] * 3
    assert (out / "returns.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "curves.csv",
        "returns.png",
        "runs.csv",
    ]
    assert "/data/runs" not in text + (out / "runs.csv").read_text()


def test_learning_page_draws_published_curves_beside_ours(main, tmp_path, capsys):
    write_run(tmp_path, "a-0", [10.0, 40.0], 35.0)
    table = tmp_path / "published.csv"
    rows = [("dreamerv3", "Toy", 0, 100, 3.0), ("dreamerv3", "Toy", 0, 200, 7.0)]
    rows += [("dreamerv3", "Toy", 1, 100, 3.0), ("dreamerv3", "Toy", 1, 200, 7.0)]
    rows += [("dreamerv3", "Toy", s, 300, 99.0) for s in (0, 1)]  # beyond the steps of our runs
    rows += [("ppo_fixhp", "Toy", 0, 200, 50.0), ("dreamerv3", "Other", 0, 200, 60.0)]
    columns = ["method", "task", "seed", "env_step", "episode_return"]
    pd.DataFrame(rows, columns=columns).to_csv(table, index=False)
    out = tmp_path / "page"
    assert main(tmp_path, "--out", out, "--published", table) == 0
    text = (out / "README.md").read_text()
    assert "| DreamerV3 (n=2), published | 2 | 7 [7, 7] | - | - | - |" in text
    assert "- Published: score files of danijar/dreamerv3 (MIT), up to step 200" in text

    pd.DataFrame(rows[-1:], columns=columns).to_csv(table, index=False)
    assert main(tmp_path, "--out", tmp_path / "other", "--published", table) == 2
    assert capsys.readouterr().err == f"--published: {table} has no Toy\n"


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ([("a-0", {"status": "KILLED"})], ["no finished runs", "a-0"]),
        ([("a-0", {}), ("a-1", {"cell": "b"})], ["a-*", "seed"]),
        ([("a-0", {"seed": "3"})], ["a-0: ", "-3"]),
        ([("a", {"seed": "3"})], ["a: ", "-3"]),
    ],
)
def test_learning_page_refuses_inconsistent_runs_in_one_line(main, tmp_path, capsys, made, words):
    for name, more in made:
        write_run(tmp_path, name, [1.0], None, **more)
    assert main(tmp_path, "--out", tmp_path / "page") == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words) and err.count("\n") == 1
    assert not (tmp_path / "page").exists()
