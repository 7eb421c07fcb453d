"""Arguments that no run can have: each is refused in one line with exit code 2."""

import importlib
import json

import pytest

from llmdreamer.cli.common import SEEDS
from llmdreamer.cli.report import find_runs
from llmdreamer.cli.status import main as status
from llmdreamer.utils.errors import ConfigError

LONG = "a" * 5000
DEEP = "a/" * 2040  # a folder may have this name, but no file in it


def refusal(command, arguments, capsys):
    """Return the line with which a command refuses its arguments."""
    assert importlib.import_module(f"llmdreamer.cli.{command}").main(arguments) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and len(line) < 300
    return line


@pytest.mark.parametrize("name", [LONG, DEEP])
@pytest.mark.parametrize(
    ("command", "more"),
    [
        ("evaluate", []),
        ("export", ["out"]),
        ("register", ["policy"]),
        ("imagine", []),
        ("diagnose", []),
        ("status", []),
        ("report", []),
        ("sync", []),
    ],
)
def test_name_that_is_too_long_is_refused_in_one_line(command, more, name, capsys):
    assert "File name too long" in refusal(command, [name, *more], capsys)


def test_output_root_that_is_too_long_is_refused_in_one_line(capsys):
    assert "File name too long" in refusal("status", ["--root", LONG], capsys)


@pytest.mark.parametrize("command", ["evaluate", "imagine", "diagnose"])
@pytest.mark.parametrize("seed", [-99999, -1, SEEDS])
def test_seed_out_of_range_is_refused_in_one_line(command, seed, tmp_path, capsys):
    line = refusal(command, [str(tmp_path), "--seed", str(seed)], capsys)
    assert f"--seed {seed}: must be from 0 to {SEEDS - 1}" in line


@pytest.mark.parametrize("interval", ["nan", "inf", "1e300", "-1", "0"])
def test_interval_that_cannot_be_waited_is_refused(interval, tmp_path, capsys):
    (tmp_path / "sweep.json").write_text("{}")
    assert status([str(tmp_path), f"--watch={interval}"]) == 2
    assert f"--watch {float(interval)}: must be > 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "table",
    [
        b"label,folder\n\xff,x\n",
        b"label,folder\n" + b"a" * 200_000 + b",x\n",
        b"folder\n" + b"a" * 5000,
    ],
    ids=["not UTF-8", "long field", "long folder"],
)
def test_report_of_a_damaged_table_names_it(table, tmp_path):
    record = {"uri": "sqlite:///x.db", "experiment": "e", "key": "k", "run_id": "1"}
    (tmp_path / "mlflow.json").write_text(json.dumps(record))
    (tmp_path / "results.csv").write_bytes(table)
    with pytest.raises(ConfigError, match=r"results\.csv cannot be read") as error:
        find_runs(str(tmp_path))
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
