"""How far a sweep is, from its files alone: by hand-made folders, and beside a driver at work."""

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
from rich.console import Console
from sweep_helpers import checkpoints, wait_until

from llmdreamer.cli.status import main
from llmdreamer.config import parse_objectives
from llmdreamer.sweep.driver_lock import DriverLock, is_locked
from llmdreamer.sweep.results_table import (
    ResultRow,
    read_results,
    shorten_numbers,
    show,
    write_results,
)
from llmdreamer.sweep.status import StatusReader, write_header
from llmdreamer.sweep.status_table import LiveTable, render_table, render_text
from llmdreamer.tracking.record import RunFiles, Wanted, save
from llmdreamer.tracking.spool import Spool

NOW = time.time()


class Folders:
    """A sweep's files as driver and runs would leave them."""

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

    def row(self, **fields) -> Path:
        number = len(self.rows)
        fields = {"seed": 0, "params": f"algo.optimizer.lr={number}", "number": number} | fields
        row = ResultRow(label=f"trial {number}", group="", overrides="", **fields)
        row.folder = str(self.folder / str(number))
        self.rows.append(row)
        write_header(self.plan, total=4)
        write_results(self.plan, self.rows)
        return Path(row.folder)

    def look(self):
        return StatusReader(self.folder).look()


def run(folder: Path, rows: list[tuple[int, float, float]], status: str | None = None) -> None:
    """A run of 50 policy steps of 2 env steps each, with rows of (env step, return, age)."""
    steps = {"algo.total_steps": 50, "env.action_repeat": 2}
    ended = None if status is None else NOW
    wanted = Wanted("", "", "", steps, {"arm": "gru"}, NOW - 100, status, ended)
    save(wanted, RunFiles(folder).wanted)
    began = NOW - 90  # this process of it
    os.utime(RunFiles(folder).wanted, (began, began))
    spool = Spool(RunFiles(folder).metrics)
    for step, value, age in rows:
        spool.append({"eval/return": value}, step, at=NOW - age)


def test_a_run_whose_lock_is_held_is_running_and_its_pace_tells_what_is_left(tmp_path):
    folders = Folders(tmp_path)
    folder = folders.row(state="waiting")
    # A row of an earlier process, then 4 env steps in 8 seconds: 84 more take 168.
    run(folder, [(4, 1.0, 95.0), (12, 2.0, 50.0), (16, 3.0, 42.0)])
    with FileLock(folder / "run.lock"):
        (line,) = folders.look().lines
    assert (line.state, line.env_step, line.total, line.values) == ("running", 16, 100, [3.0])
    assert line.left == pytest.approx(168.0)
    assert line.seconds == pytest.approx(100.0 + time.time() - NOW, abs=5)
    assert line.arm == "gru"


def test_what_a_killed_driver_called_running_is_stopped(tmp_path):
    folders = Folders(tmp_path)
    run(folders.row(state="running"), [(12, 2.0, 50.0)])
    folders.row(state="running")
    assert [line.state for line in folders.look().lines] == ["stopped", "waiting"]
    driver = DriverLock.announce(folders.folder)
    sweep = folders.look()
    assert [line.state for line in sweep.lines] == ["starting", "starting"]
    assert sweep.drivers == [f"{os.uname().nodename}, process {os.getpid()}"]
    driver.close()
    assert folders.look().drivers == []


def test_a_run_that_finished_after_its_driver_died_is_finished(tmp_path):
    folders = Folders(tmp_path, objective="eval/return:best")
    run(folders.row(state="running"), [(50, 9.0, 50.0), (100, 2.0, 40.0)], status="FINISHED")
    (line,) = folders.look().lines
    assert (line.state, line.env_step, line.values, line.left) == ("finished", 100, [9.0], None)


def test_a_pruned_trial_shows_how_far_it_came(tmp_path):
    folders = Folders(tmp_path)
    run(folders.row(state="pruned"), [(10, 9.0, 50.0), (20, 2.0, 40.0)], status="KILLED")
    (line,) = folders.look().lines
    assert (line.state, line.env_step, line.values, line.left) == ("pruned", 20, [2.0], None)


def test_a_trial_of_several_seeds_is_one_line(tmp_path):
    folders = Folders(tmp_path, seeds=(3, 4, 5))
    folder = folders.row(state="running", seed=None)
    run(folder / "seed-3", [(100, 6.0, 50.0)], status="FINISHED")
    run(folder / "seed-4", [(20, 2.0, 50.0)])
    with FileLock(folder / "seed-4" / "run.lock"):
        (line,) = folders.look().lines
    assert (line.seed, line.state, line.env_step, line.total) == ("1 of 3", "running", 120, 300)
    assert line.values == [4.0]


def test_the_table_is_read_as_it_was_written(tmp_path):
    folders = Folders(tmp_path, objective="eval/return,loss")
    folders.row(state="finished", values=[1.5, 1e-9], env_step=7, arm="gru")
    folders.row(state="failed", cause='a "cause", with commas', seed=None)
    assert read_results(folders.folder / "results.csv") == folders.rows


def test_the_final_table_shows_what_was_typed_with_its_brackets():
    plan = SimpleNamespace(name="s", objectives=parse_objectives("eval/return"))
    rows = [
        ResultRow(f"target_modules={one}", one, 0, "", state="finished", values=[1.0])
        for one in ("[c_attn]", "[c_attn,c_proj]")
    ]
    console = Console(width=80, file=io.StringIO())
    show(plan, rows, console)
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
def test_the_final_table_shows_four_digits_of_what_was_drawn(label, short):
    assert shorten_numbers(label) == short


def tree(folder: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_status_writes_nothing(tmp_path, monkeypatch, capsys):
    folders = Folders(tmp_path)
    run(folders.row(state="running"), [(12, 2.0, 50.0)])
    folders.row()
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    for arguments in (["s"], ["s", "--json"], [str(folders.folder)], [], ["t"], ["--root", "x"]):
        main([*arguments])
    assert tree(tmp_path) == before
    assert not is_locked(tmp_path / "no such file")


def test_a_sweep_that_is_not_there_is_one_line_with_those_that_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["ablation"]) == 2
    assert "there is no sweep ablation: outputs/sweeps holds none" in capsys.readouterr().err
    Folders(tmp_path).row()
    assert main(["ablation"]) == 2
    assert capsys.readouterr().err == "there is no sweep ablation; there are s\n"
    assert main([]) == 0
    assert capsys.readouterr().out == "s\n"


def test_whoever_has_seen_enough_of_it_may_close_the_pipe(tmp_path):
    Folders(tmp_path).row(state="finished", values=[1.0])
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


def test_plain_lines_are_not_cut_and_hold_the_shortest_names(tmp_path):
    folders = Folders(tmp_path)
    folders.row(state="finished", values=[1.23456789], params="a.lr=0.00012345678 b.r=4")
    folders.row(state="failed", cause="out of memory", params="a.lr=1 b.r=8", arm="lora")
    head, columns, first, second, cause = render_text(folders.look()).splitlines()
    assert head.startswith("s: 1 failed, 2 waiting, 1 finished, of 4; no driver: goes on with")
    assert columns.split("  ")[0] == "#"
    assert first.split() == ["0", "-", "lr=0.0001235", "r=4", "0", "0", "1.2346", "finished", "-"]
    assert second.split()[1:4] == ["lora", "lr=1", "r=8"]
    assert cause == "failed: 1: out of memory"


def test_a_narrow_terminal_folds_what_is_long_and_loses_nothing(tmp_path):
    folders = Folders(tmp_path)
    for _ in range(9):
        folders.row(state="finished", values=[1.0], params="lr=0.001 name=" + "§" * 60)
    folders.row(state="running", params="lr=0.2")

    def text(height=None):
        console = Console(width=60, file=io.StringIO(), force_terminal=False)
        console.print(render_table(folders.look(), 60, height))
        return console.file.getvalue()

    assert max(map(len, text().splitlines())) <= 60
    assert text().count("§") == 9 * 60
    short = text(height=10)
    assert "and 7 more" in short
    assert "lr=0.2" in short  # the one that is not over


def test_on_a_low_terminal_folded_rows_leave_room_for_the_runs_at_work(tmp_path):
    folders = Folders(tmp_path)
    for number in range(30):
        state = "running" if number in (4, 29) else "finished"
        folders.row(state=state, params="name=" + "§" * 40 + f" lr={number}")
    with contextlib.ExitStack() as held:
        for number in (4, 29):
            lock = tmp_path / "outputs" / "sweeps" / "s" / str(number) / "run.lock"
            held.enter_context(FileLock(lock))
        sweep = folders.look()
    console = Console(width=60, file=io.StringIO())
    console.print(render_table(sweep, 60, 24))
    lines = console.file.getvalue().splitlines()
    assert len(lines) < 24
    assert {"lr=4", "lr=29"} <= {word for line in lines for word in line.split()}
    assert sum("running" in line for line in lines[1:]) == 2


def test_what_is_logged_beside_a_live_table_goes_above_it(tmp_path, monkeypatch):
    folders = Folders(tmp_path)
    folders.row(state="finished", values=[1.0])
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "__stdout__", out)
    handler = logging.StreamHandler(out)
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    with LiveTable(folders.look, Console(file=out, force_terminal=True, width=80)) as screen:
        screen.refresh()
        logging.getLogger().error("start trial 7")
        assert handler.stream is not out
    assert handler.stream is out
    assert out.getvalue().index("finished") < out.getvalue().index("start trial 7")


def test_status_follows_a_sweep_from_its_start_to_its_end(sweeper, monkeypatch, capsys):
    driver = sweeper.start(
        "algo.horizon=5,6", "hydra.sweeper.study_name=g", FAKE_RUN_STEP_SECONDS="0.2"
    )
    wait_until(lambda: sweeper.cells and checkpoints(sweeper.cells[0]))
    monkeypatch.chdir(sweeper.folder)
    capsys.readouterr()

    def told():
        assert main(["g", "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    wait_until(lambda: [line["state"] for line in told()["lines"]] == ["running", "waiting"])
    assert len(told()["drivers"]) == 1
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, out
    assert [line["state"] for line in told()["lines"]] == ["finished"] * 2
    assert [line["values"] for line in told()["lines"]] == [[10.0]] * 2
    assert told()["drivers"] == []


def test_status_tells_of_a_study_whose_driver_was_killed(sweeper, monkeypatch, capsys):
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
    assert out.startswith("s: 1 stopped, 2 waiting, of 3; no driver: goes on with python ")
    assert "/10" in out
