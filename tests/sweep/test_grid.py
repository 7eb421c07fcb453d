"""The laws of a grid, with real processes and real kills; the trials are stand-ins."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from driving import ROOT, checkpoints, gone, starts, until

from llmdreamer.sweep.member import membership
from llmdreamer.sweep.rerun import Rerun


def test_every_combination_is_run_once_and_what_has_no_effect_makes_no_cell(sweeping):
    code, out = sweeping("peft=false,true", "lora.r=4,8", "hydra.sweeper.n_jobs=2")
    assert code == 0, out
    assert [row["label"] for row in sweeping.rows()] == [
        "peft=false lora.r=4", "peft=true lora.r=4", "peft=true lora.r=8",
    ]  # fmt: skip
    assert "4 combinations are 3 cells" in out
    assert len(sweeping.cells) == 3
    assert all(len(starts(cell)) == 1 for cell in sweeping.cells)


def test_the_same_command_runs_nothing_again_and_a_wider_one_only_what_is_new(sweeping):
    sweeping("replay_ratio=1,2")
    _, out = sweeping("replay_ratio=1,2")
    assert "2 of 2 cells were finished before" in out
    sweeping("replay_ratio=1,2,4")
    assert [len(starts(cell)) for cell in sweeping.cells] == [1, 1, 1]
    # Another dimension whose first value is the old one.
    sweeping("replay_ratio=1", "algo.horizon=15,16")
    assert [len(starts(cell)) for cell in sweeping.cells] == [1, 1, 1, 1]


def test_rerun_runs_finished_cells_again_and_keeps_what_they_left(sweeping):
    sweeping("seed=3")
    (cell,) = sweeping.cells
    old = starts(cell)
    sweeping("seed=3", "rerun=true")
    assert starts(kept(cell)) == old
    assert starts(cell) != old


def kept(cell, number=1):
    return cell.with_name(f"{cell.name}.{number}")


def test_a_rerun_that_was_stopped_goes_on_and_one_that_is_complete_begins_anew(sweeping):
    rerun = ["seed=0,1", "rerun=true"]
    sweeping("seed=0,1")
    one, two = sweeping.cells
    driver = sweeping.start(*rerun, STANDIN_STEP="0.1")
    until(lambda: kept(two).exists() and checkpoints(two))
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=300)
    code, out = sweeping(*rerun)
    assert code == 0, out
    assert "1 of 2 cells are done of the rerun that goes on" in out
    assert [len(starts(cell)) for cell in (one, two)] == [1, 2]
    assert int(starts(two)[1][0]) >= 1
    assert not kept(two, 2).exists()
    sweeping(*rerun)
    assert kept(one, 2).exists()
    assert kept(two, 2).exists()


def test_a_rerun_is_complete_once_what_failed_is_done_whoever_did_it(sweeping):
    sweeping("seed=0,1", "rerun=true", STANDIN_FAIL="1")
    assert [len(starts(cell)) for cell in sweeping.cells] == [1, 1]
    sweeping("seed=0,1")
    assert [len(starts(cell)) for cell in sweeping.cells] == [1, 2]
    sweeping("seed=0,1", "rerun=true")
    assert len(sweeping.cells) == 4


def test_two_drivers_share_a_rerun(sweeping):
    sweeping("seed=0,1,2,3")
    cells = sweeping.cells
    busy = sweeping.start("seed=0,1,2,3", "rerun=true", STANDIN_STEP="0.4")
    until(lambda: kept(cells[0]).exists() and checkpoints(cells[0]))
    quick = sweeping.start("seed=0,1,2,3", "rerun=true")
    for driver in (busy, quick):
        out, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, out
    assert [len(starts(cell)) for cell in cells] == [1, 1, 1, 1]
    assert [kept(cell).exists() for cell in cells] == [True] * 4
    assert not any(kept(cell, 2).exists() for cell in cells)


def test_a_rerun_puts_aside_what_is_half_done_too(sweeping):
    driver = sweeping.start("seed=0", STANDIN_STEP="0.2")
    until(lambda: sweeping.cells and checkpoints(sweeping.cells[0]))
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=300)
    (cell,) = sweeping.cells
    old = starts(cell)
    sweeping("seed=0", "rerun=true")
    assert starts(kept(cell)) == old
    assert [start[0] for start in starts(cell)] == ["0"]


def test_a_rerun_moves_no_folder_that_a_process_lives_in(tmp_path):
    rerun = Rerun(tmp_path / "sweep")
    rerun.begin()
    cell = tmp_path / "cell"
    cell.mkdir()
    with membership(cell):
        assert not rerun.take(cell)
    assert rerun.take(cell)
    assert kept(cell).exists()


def test_seeds_repeat_each_cell_and_the_table_aggregates_them(sweeping):
    code, out = sweeping("algo.horizon=5,6", "seeds=3", "seed=2", "hydra.sweeper.n_jobs=2")
    assert code == 0, out
    assert sorted(int(row["seed"]) for row in sweeping.rows()) == [2, 2, 3, 3, 4, 4]
    # The stand-in's return is 10 * (1 + seed): 30, 40, 50.
    assert out.count("40 ± 10") == 2
    sweeping("algo.horizon=5,6", "seed=2,3,4")
    assert all(len(starts(cell)) == 1 for cell in sweeping.cells)


def test_a_failing_cell_leaves_the_others_alone_and_tells_why(sweeping):
    code, out = sweeping("seed=0,1,2", STANDIN_FAIL="1")
    assert code == 1
    assert [row["state"] for row in sweeping.rows()] == ["finished", "failed", "finished"]
    assert sweeping.rows()[1]["cause"] == "lr is a mess"
    assert out.rstrip().endswith("1 of 3 runs failed")
    assert sweeping("seed=0,1,2")[0] == 0
    assert [len(starts(cell)) for cell in sweeping.cells] == [1, 2, 1]


def test_a_cell_without_memory_leaves_the_others_alone(sweeping):
    code, out = sweeping("seed=0,1", STANDIN_HUNGRY="0")
    assert code == 1 and out.rstrip().endswith("1 of 2 runs failed")
    assert [row["state"] for row in sweeping.rows()] == ["failed", "finished"]
    assert sweeping.rows()[0]["cause"] == "MemoryError"


def test_a_refused_cell_leaves_the_others_alone(sweeping):
    code, out = sweeping("algo.horizon=0,5")
    assert code == 2
    assert [row["state"] for row in sweeping.rows()] == ["failed", "finished"]
    assert "algo.horizon=0: must be >= 1" in out


def test_a_killed_run_goes_on_from_its_checkpoint(sweeping):
    driver = sweeping.start("seed=0", STANDIN_STEP="0.1")
    until(lambda: sweeping.cells and checkpoints(sweeping.cells[0]))
    (cell,) = sweeping.cells
    os.kill(int(starts(cell)[0][1]), signal.SIGKILL)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, out
    first, second = starts(cell)
    assert (first[0], int(second[0]) >= 1) == ("0", True)
    assert sweeping.rows()[0]["eval/return"] == "10.0"


def test_a_killed_driver_takes_its_runs_along_and_the_same_command_goes_on(sweeping):
    driver = sweeping.start("seed=0,1", "hydra.sweeper.n_jobs=2", STANDIN_STEP="0.2")
    until(lambda: sum(bool(checkpoints(cell)) for cell in sweeping.cells) == 2)
    driver.kill()
    until(lambda: all(gone(starts(cell)[0][1]) for cell in sweeping.cells))
    code, out = sweeping("seed=0,1", "hydra.sweeper.n_jobs=2")
    assert code == 0, out
    assert [len(starts(cell)) for cell in sweeping.cells] == [2, 2]
    assert all(int(starts(cell)[1][0]) >= 1 for cell in sweeping.cells)


def test_ctrl_c_lets_the_runs_write_checkpoints_and_the_same_command_goes_on(sweeping):
    driver = sweeping.start("seed=0,1", STANDIN_STEP="0.2")
    until(lambda: sweeping.cells and checkpoints(sweeping.cells[0]))
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130, out
    assert "the same command goes on" in out
    assert gone(starts(sweeping.cells[0])[0][1])
    assert sweeping("seed=0,1")[0] == 0
    assert [len(starts(cell)) for cell in sweeping.cells] == [2, 1]


def test_two_drivers_share_a_grid(sweeping):
    one, two = (sweeping.start("seed=0,1,2,3", STANDIN_STEP="0.05") for _ in range(2))
    for driver in (one, two):
        out, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, out
    assert [len(starts(cell)) for cell in sweeping.cells] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "flags",
    [["--config-dir=whole", "--config-name=other"], ["--config-path={whole}"]],
    ids=["a file of one's own", "a folder of one's own"],
)
def test_the_runs_of_another_configuration_are_told_which(sweeping, tmp_path, flags):
    whole = tmp_path / "whole"
    shutil.copytree(ROOT / "conf", whole)
    text = (whole / "config.yaml").read_text().replace("replay_ratio: 0.5", "replay_ratio: 2")
    (whole / ("other" if len(flags) == 2 else "config")).with_suffix(".yaml").write_text(text)
    flags = [flag.format(whole=os.path.relpath(whole, ROOT)) for flag in flags]
    sweeping("seed=0,1")
    code, out = sweeping("seed=0,1", *flags)
    assert code == 0, out
    assert len(sweeping.cells) == 4
    assert len([*tmp_path.glob("outputs/sweeps/*")]) == 2
    told = [json.loads((cell / "config.yaml").read_text()) for cell in sweeping.cells]
    others = {tuple(f"{key}={one[key]}" for key in one if key.startswith("--")) for one in told}
    assert len(others) == 2  # none of the first two runs, the same of the others
    command = [sys.executable, str(ROOT / "run.py"), *max(others, key=len), "--cfg", "job"]
    composed = subprocess.check_output(command, cwd="/", text=True)
    assert "\nreplay_ratio: 2.0\n" in composed


def test_slots_share_the_cores_and_know_their_devices(sweeping, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sweeping("seed=0,1", "hydra.sweeper.devices=[0,1]", "hydra.sweeper.per_device=1")
    fair = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert {starts(cell)[0][2] for cell in sweeping.cells} == {fair}
    assert {starts(cell)[0][3] for cell in sweeping.cells} == {"0", "1"}
