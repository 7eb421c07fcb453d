"""Progress of a sweep, read from hand-made folders and beside a running driver."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock
from refusals import assert_names
from rich.console import Console
from sweep_helpers import checkpoints, wait_until

from llmdreamer.cli.command import main as llmdreamer
from llmdreamer.cli.status import main
from llmdreamer.config import parse_objectives
from llmdreamer.sweep.driver_lock import DriverLock, is_locked
from llmdreamer.sweep.results_table import (
    ResultRow,
    print_results,
    read_results,
    shorten_numbers,
    write_results,
)
from llmdreamer.sweep.status import StatusReader, write_header
from llmdreamer.sweep.status_table import LiveTable, render_table, render_text
from llmdreamer.tracking.record import RunFiles, RunRecord, save
from llmdreamer.tracking.spool import Spool

NOW = time.time()


class SweepFolder:
    """Writes a sweep's files as a driver and its runs would."""

    def __init__(self, root: Path, seeds: tuple[int, ...] = (0,), objective: str = "eval/return"):
        self.folder = root / "outputs" / "sweeps" / "s"
        self.folder.mkdir(parents=True)
        self.plan = SimpleNamespace(
            folder=self.folder,
            objectives=parse_objectives(objective),
            maximize=[True] * len(objective.split(",")),
            seeds=list(seeds),
        )
        self.rows: list[ResultRow] = []

    def add_row(self, **fields) -> Path:
        """Add a row to results.csv and return the run's folder, which does not exist yet."""
        number = len(self.rows)
        fields = {"seed": 0, "params": f"algo.optimizer.lr={number}", "number": number} | fields
        row = ResultRow(label=f"trial {number}", group="", overrides="", **fields)
        row.folder = str(self.folder / str(number))
        self.rows.append(row)
        write_header(self.plan, total=4)
        write_results(self.plan, self.rows)
        return Path(row.folder)

    def read(self):
        return StatusReader(self.folder).read()


def write_run(folder: Path, points: list[tuple[int, float, float]], status: str | None = None):
    """Write a run of 50 policy steps of 2 env steps each.

    Args:
        points: (env step, return, age in seconds).
    """
    steps = {"algo.total_steps": 50, "env.action_repeat": 2}
    ended = None if status is None else NOW
    record = RunRecord("", "", "", steps, {"arm": "gru"}, NOW - 100, status, ended)
    save(record, RunFiles(folder).run_record)
    process_started = NOW - 90
    os.utime(RunFiles(folder).run_record, (process_started, process_started))
    spool = Spool(RunFiles(folder).metrics)
    for step, value, age in points:
        spool.append({"eval/return": value}, step, at=NOW - age)


def test_locked_run_is_running_and_its_speed_gives_the_time_left(tmp_path):
    sweep_folder = SweepFolder(tmp_path)
    folder = sweep_folder.add_row(state="waiting")
    # One record of an earlier process, then 4 env steps in 8 s: the 84 steps left take 168 s.
    write_run(folder, [(4, 1.0, 95.0), (12, 2.0, 50.0), (16, 3.0, 42.0)])
    with FileLock(folder / "run.lock"):
        (run,) = sweep_folder.read().runs
    assert (run.state, run.env_step, run.total_env_steps, run.values) == ("running", 16, 100, [3.0])
    assert run.seconds_left == pytest.approx(168.0)
    assert run.seconds == pytest.approx(100.0 + time.time() - NOW, abs=5)
    assert run.arm == "gru"


def test_running_rows_of_a_killed_driver_are_stopped_or_waiting(tmp_path):
    sweep_folder = SweepFolder(tmp_path)
    write_run(sweep_folder.add_row(state="running"), [(12, 2.0, 50.0)])
    sweep_folder.add_row(state="running")
    assert [run.state for run in sweep_folder.read().runs] == ["stopped", "waiting"]
    driver = DriverLock.announce(sweep_folder.folder)
    sweep = sweep_folder.read()
    assert [run.state for run in sweep.runs] == ["starting", "starting"]
    assert sweep.drivers == [f"{os.uname().nodename}, process {os.getpid()}"]
    driver.close()
    assert sweep_folder.read().drivers == []


def test_run_that_finished_after_its_driver_died_is_finished(tmp_path):
    sweep_folder = SweepFolder(tmp_path, objective="eval/return:best")
    folder = sweep_folder.add_row(state="running")
    write_run(folder, [(50, 9.0, 50.0), (100, 2.0, 40.0)], status="FINISHED")
    (run,) = sweep_folder.read().runs
    assert (run.state, run.env_step, run.values, run.seconds_left) == ("finished", 100, [9.0], None)


def test_pruned_trial_shows_its_last_step_and_value(tmp_path):
    sweep_folder = SweepFolder(tmp_path)
    folder = sweep_folder.add_row(state="pruned")
    write_run(folder, [(10, 9.0, 50.0), (20, 2.0, 40.0)], status="KILLED")
    (run,) = sweep_folder.read().runs
    assert (run.state, run.env_step, run.values, run.seconds_left) == ("pruned", 20, [2.0], None)


def test_trial_over_several_seeds_is_one_run_status(tmp_path):
    sweep_folder = SweepFolder(tmp_path, seeds=(3, 4, 5))
    folder = sweep_folder.add_row(state="running", seed=None)
    write_run(folder / "seed-3", [(100, 6.0, 50.0)], status="FINISHED")
    write_run(folder / "seed-4", [(20, 2.0, 50.0)])
    with FileLock(folder / "seed-4" / "run.lock"):
        (run,) = sweep_folder.read().runs
    assert (run.seed, run.state) == ("1 of 3", "running")
    assert (run.env_step, run.total_env_steps) == (120, 300)
    assert run.values == [4.0]


def test_results_are_read_as_they_were_written(tmp_path):
    sweep_folder = SweepFolder(tmp_path, objective="eval/return,loss")
    sweep_folder.add_row(state="finished", values=[1.5, 1e-9], env_step=7, arm="gru")
    sweep_folder.add_row(state="failed", cause='a "cause", with commas', seed=None)
    assert read_results(sweep_folder.folder / "results.csv") == sweep_folder.rows


def test_printed_results_keep_brackets_of_labels():
    plan = SimpleNamespace(name="s", objectives=parse_objectives("eval/return"))
    rows = [
        ResultRow(f"target_modules={value}", value, 0, "", state="finished", values=[1.0])
        for value in ("[c_attn]", "[c_attn,c_proj]")
    ]
    console = Console(width=80, file=io.StringIO())
    print_results(plan, rows, console)
    assert "│ target_modules=[c_attn]        │" in console.file.getvalue()
    assert "│ target_modules=[c_attn,c_proj] │" in console.file.getvalue()


@pytest.mark.parametrize(
    ("label", "short"),
    [
        ("lr=0.0023723300729921923 r=8", "lr=0.002372 r=8"),
        ("lr=1.229217211548788e-05", "lr=1.229e-05"),
        ("steps=128 modules=[c_attn,c_proj]", "steps=128 modules=[c_attn,c_proj]"),
        ("scratch", "scratch"),
    ],
)
def test_long_numbers_in_labels_are_rounded_to_four_digits(label, short):
    assert shorten_numbers(label) == short


def modification_times(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_status_writes_nothing(tmp_path, monkeypatch, capsys):
    sweep_folder = SweepFolder(tmp_path)
    write_run(sweep_folder.add_row(state="running"), [(12, 2.0, 50.0)])
    sweep_folder.add_row()
    monkeypatch.chdir(tmp_path)
    before = modification_times(tmp_path)
    path = str(sweep_folder.folder)
    for arguments in (["s"], ["s", "--json"], [path], [], ["t"], ["--root", "x"]):
        main([*arguments])
    assert modification_times(tmp_path) == before
    assert not is_locked(tmp_path / "no such file")


def test_status_of_unknown_sweep_exits_2_and_lists_the_known_ones(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ablation"]) == 2
    assert "sweep ablation: outputs/sweeps " in capsys.readouterr().err
    SweepFolder(tmp_path).add_row()
    assert main(["ablation"]) == 2
    assert "sweep ablation; choose from s" in capsys.readouterr().err
    assert main([]) == 0
    assert capsys.readouterr().out == "s\n"


def test_status_exits_quietly_on_broken_pipe(tmp_path):
    SweepFolder(tmp_path).add_row(state="finished", values=[1.0])
    command = [sys.executable, "-m", "llmdreamer", "status", "s"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.environ["LLMDREAMER_ROOT"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as status:
        status.stdout.close()
        assert status.stderr.read() == b""
    assert status.returncode == 141


def test_text_for_a_pipe_is_never_cut_and_uses_the_shortest_names(tmp_path):
    sweep_folder = SweepFolder(tmp_path)
    sweep_folder.add_row(state="finished", values=[1.23456789], params="a.lr=0.00012345678 b.r=4")
    sweep_folder.add_row(state="failed", cause="out of memory", params="a.lr=1 b.r=8", arm="lora")
    head, columns, first, second, cause = render_text(sweep_folder.read()).splitlines()
    assert head.startswith("s: 1 failed, 2 waiting, 1 finished, of 4; no driver")
    assert columns.split("  ")[0] == "#"
    assert first.split() == ["0", "-", "lr=0.0001235", "r=4", "0", "0", "1.2346", "finished", "-"]
    assert second.split()[1:4] == ["lora", "lr=1", "r=8"]
    assert cause == "failed: 1: out of memory"


def test_narrow_terminal_wraps_long_texts_without_loss(tmp_path):
    sweep_folder = SweepFolder(tmp_path)
    for _ in range(9):
        sweep_folder.add_row(state="finished", values=[1.0], params="lr=0.001 name=" + "§" * 60)
    sweep_folder.add_row(state="running", params="lr=0.2")

    def text(height=None):
        console = Console(width=60, file=io.StringIO(), force_terminal=False)
        console.print(render_table(sweep_folder.read(), 60, height))
        return console.file.getvalue()

    assert max(map(len, text().splitlines())) <= 60
    assert text().count("§") == 9 * 60
    short = text(height=10)
    assert "and 7 more" in short
    assert "lr=0.2" in short  # the one that has not ended


def test_low_terminal_keeps_the_running_runs_when_rows_wrap(tmp_path):
    sweep_folder = SweepFolder(tmp_path)
    for number in range(30):
        state = "running" if number in (4, 29) else "finished"
        sweep_folder.add_row(state=state, params="name=" + "§" * 40 + f" lr={number}")
    with contextlib.ExitStack() as held:
        for number in (4, 29):
            lock = tmp_path / "outputs" / "sweeps" / "s" / str(number) / "run.lock"
            held.enter_context(FileLock(lock))
        sweep = sweep_folder.read()
    console = Console(width=60, file=io.StringIO())
    console.print(render_table(sweep, 60, 24))
    lines = console.file.getvalue().splitlines()
    assert len(lines) < 24
    assert {"lr=4", "lr=29"} <= {word for line in lines for word in line.split()}
    assert sum("running" in line for line in lines[1:]) == 2


def test_log_lines_appear_above_a_live_table(tmp_path, monkeypatch):
    sweep_folder = SweepFolder(tmp_path)
    sweep_folder.add_row(state="finished", values=[1.0])
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "__stdout__", out)
    handler = logging.StreamHandler(out)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with LiveTable(sweep_folder.read, Console(file=out, force_terminal=True, width=80)) as table:
        table.refresh()
        logging.getLogger().error("start trial 7")
        assert handler.stream is not out
    assert handler.stream is out
    assert out.getvalue().index("finished") < out.getvalue().index("start trial 7")


def test_status_follows_a_sweep_from_start_to_end(sweeper, monkeypatch, capsys):
    driver = sweeper.start(
        "algo.horizon=5,6", "hydra.sweeper.study_name=g", FAKE_RUN_STEP_SECONDS="0.2"
    )
    wait_until(lambda: sweeper.cells and checkpoints(sweeper.cells[0]))
    monkeypatch.chdir(sweeper.folder)
    capsys.readouterr()

    def read_json():
        assert main(["g", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    wait_until(lambda: [run["state"] for run in read_json()["runs"]] == ["running", "waiting"])
    assert len(read_json()["drivers"]) == 1
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, out
    assert [run["state"] for run in read_json()["runs"]] == ["finished"] * 2
    assert [run["values"] for run in read_json()["runs"]] == [[10.0]] * 2
    assert read_json()["drivers"] == []


def test_status_of_a_study_whose_driver_was_killed_shows_it_stopped(sweeper, monkeypatch, capsys):
    study = ["algo.optimizer.lr=interval(1e-4,1e-2)", "hydra.sweeper.n_trials=3"]
    driver = sweeper.start(*study, "hydra.sweeper.study_name=s", FAKE_RUN_STEP_SECONDS="0.2")
    folder = sweeper.folder / "outputs" / "sweeps" / "s"
    wait_until(lambda: (folder / "results.csv").exists() and checkpoints(folder / "0"))
    wait_until(lambda: len(read_results(folder / "results.csv")) == 1)
    driver.kill()
    driver.communicate()
    wait_until(lambda: not is_locked(folder / "0" / "run.lock"))
    monkeypatch.chdir(sweeper.folder)
    assert main(["s"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("s: 1 stopped, 2 waiting, of 3; no driver: ")
    assert "python " in out.splitlines()[0]
    assert "/10" in out


GARBAGE = ["", "null", "[]", "3", '"text"', "{", "{}", "[" * 99999, '{"a":' * 9999, "\0", "é\udcff"]
WRONG_VALUES = [
    None,
    [],
    {},
    "5",
    5,
    -1,
    1.5,
    True,
    [None],
    ["x"],
    10**400,
    float("nan"),
    "x" * 9999,
]


def assert_one_line_or_shown(sweep: SweepFolder, capsys) -> int:
    code = main([str(sweep.folder)])
    printed = capsys.readouterr()
    assert code in (0, 2)
    if code == 2:
        assert len(printed.err.splitlines()) == 1
    assert main([str(sweep.folder), "--json"]) == code
    capsys.readouterr()
    return code


@pytest.fixture
def damaged_sweep(tmp_path):
    """A sweep of a finished and a running run."""
    sweep = SweepFolder(tmp_path)
    write_run(sweep.add_row(state="finished", values=[5.0]), [(100, 5.0, 10.0)], "FINISHED")
    write_run(sweep.add_row(state="running"), [(20, 3.0, 10.0), (40, 4.0, 5.0)])
    return sweep


@pytest.mark.parametrize("text", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize(
    "name", ["sweep.json", "results.csv", "1/tracking/run.json", "1/metrics.jsonl"]
)
def test_status_of_a_damaged_file_is_one_line(damaged_sweep, capsys, name, text):
    (damaged_sweep.folder / name).write_bytes(text.encode(errors="surrogateescape") + b"\n")
    code = assert_one_line_or_shown(damaged_sweep, capsys)
    assert code == 2 or name not in ("sweep.json", "results.csv")


@pytest.mark.parametrize("value", WRONG_VALUES, ids=range(len(WRONG_VALUES)))
@pytest.mark.parametrize("name", ["sweep.json", "1/tracking/run.json"])
def test_status_of_a_field_of_another_type_is_one_line(damaged_sweep, capsys, name, value):
    path = damaged_sweep.folder / name
    fields = json.loads(path.read_text())
    for field in fields:
        path.write_text(json.dumps(fields | {field: value}))
        assert_one_line_or_shown(damaged_sweep, capsys)


@pytest.mark.parametrize("field", ["number", "seed", "env_step", "state", "eval/return", "folder"])
@pytest.mark.parametrize("value", ["", "x", "-1", "1e999", "9" * 5000, "nan", '"'])
def test_status_of_a_table_with_another_value_is_one_line(damaged_sweep, capsys, field, value):
    table = damaged_sweep.folder / "results.csv"
    header, first, *rest = table.read_text().splitlines()
    cells = dict(zip(header.split(","), first.split(","), strict=True)) | {field: value}
    table.write_text("\n".join([header, ",".join(cells.values()), *rest]) + "\n")
    assert_one_line_or_shown(damaged_sweep, capsys)


def test_status_names_the_damaged_file_and_shows_the_other_runs(damaged_sweep, capsys):
    (damaged_sweep.folder / "1" / "tracking" / "run.json").write_text("{")
    assert main([str(damaged_sweep.folder)]) == 0
    out = capsys.readouterr().out
    assert "run.json is damaged" in out and "finished" in out


@pytest.mark.parametrize("command", [["status"], ["report", "--out", "page"]])
def test_latest_names_the_sweep_that_started_last(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name, *more = command
    assert llmdreamer([name, "latest", *more]) == 2
    assert_names(capsys.readouterr().err, "latest", tmp_path / "outputs" / "sweeps")
    for age, sweep in enumerate(["b", "c", "a"]):
        header = tmp_path / "outputs" / "sweeps" / sweep / "sweep.json"
        header.parent.mkdir(parents=True)
        header.write_text("{}")
        os.utime(header, (100 * age, 100 * age))
    llmdreamer([name, "latest", *more])  # refused, because the files are empty
    first, second = capsys.readouterr().err.splitlines()
    assert_names(first, "latest: outputs/sweeps/a")
    assert_names(second, "outputs/sweeps/a")
