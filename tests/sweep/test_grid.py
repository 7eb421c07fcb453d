"""Grids with real driver processes and real kills. The runs are fake."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from sweep_helpers import ROOT, checkpoints, is_gone, read_starts, wait_until

from llmdreamer.sweep.rerun import Rerun
from llmdreamer.sweep.run_lock import hold_run_lock


def test_grid_runs_each_combination_once_without_values_that_have_no_effect(sweeper):
    code, out = sweeper("peft=false,true", "lora.r=4,8", "hydra.sweeper.n_jobs=2")
    assert code == 0, out
    assert [row["label"] for row in sweeper.rows()] == [
        "peft=false lora.r=4", "peft=true lora.r=4", "peft=true lora.r=8",
    ]  # fmt: skip
    assert "4 combinations" in out and "3 cells" in out
    assert len(sweeper.cells) == 3
    assert all(len(read_starts(cell)) == 1 for cell in sweeper.cells)


def test_repeated_grid_runs_only_new_cells(sweeper):
    sweeper("replay_ratio=1,2")
    _, out = sweeper("replay_ratio=1,2")
    assert "2 of 2 cells" in out
    sweeper("replay_ratio=1,2,4")
    assert [len(read_starts(cell)) for cell in sweeper.cells] == [1, 1, 1]
    # A new dimension whose first value is the default.
    sweeper("replay_ratio=1", "algo.horizon=15,16")
    assert [len(read_starts(cell)) for cell in sweeper.cells] == [1, 1, 1, 1]


def test_rerun_repeats_finished_cells_and_keeps_their_old_folders(sweeper):
    sweeper("seed=3")
    (cell,) = sweeper.cells
    old = read_starts(cell)
    sweeper("seed=3", "rerun=true")
    assert read_starts(old_folder(cell)) == old
    assert read_starts(cell) != old


def old_folder(cell, number=1):
    return cell.with_name(f"{cell.name}.{number}")


def test_stopped_rerun_continues_and_completed_rerun_starts_over(sweeper):
    rerun = ["seed=0,1", "rerun=true"]
    sweeper("seed=0,1")
    first, second = sweeper.cells
    driver = sweeper.start(*rerun, FAKE_RUN_STEP_SECONDS="0.1")
    wait_until(lambda: old_folder(second).exists() and checkpoints(second))
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=300)
    code, out = sweeper(*rerun)
    assert code == 0, out
    assert "1 of 2 cells" in out
    assert [len(read_starts(cell)) for cell in (first, second)] == [1, 2]
    assert int(read_starts(second)[1][0]) >= 1
    assert not old_folder(second, 2).exists()
    sweeper(*rerun)
    assert old_folder(first, 2).exists()
    assert old_folder(second, 2).exists()


def test_rerun_is_complete_once_a_plain_command_finishes_its_failed_cells(sweeper):
    sweeper("seed=0,1", "rerun=true", FAKE_RUN_FAIL_SEED="1")
    assert [len(read_starts(cell)) for cell in sweeper.cells] == [1, 1]
    sweeper("seed=0,1")
    assert [len(read_starts(cell)) for cell in sweeper.cells] == [1, 2]
    sweeper("seed=0,1", "rerun=true")
    assert len(sweeper.cells) == 4


def test_two_drivers_share_a_rerun(sweeper):
    sweeper("seed=0,1,2,3")
    cells = sweeper.cells
    busy = sweeper.start("seed=0,1,2,3", "rerun=true", FAKE_RUN_STEP_SECONDS="0.4")
    wait_until(lambda: old_folder(cells[0]).exists() and checkpoints(cells[0]))
    quick = sweeper.start("seed=0,1,2,3", "rerun=true")
    for driver in (busy, quick):
        out, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, out
    assert [len(read_starts(cell)) for cell in cells] == [1, 1, 1, 1]
    assert [old_folder(cell).exists() for cell in cells] == [True] * 4
    assert not any(old_folder(cell, 2).exists() for cell in cells)


def test_rerun_moves_unfinished_runs_aside_too(sweeper):
    driver = sweeper.start("seed=0", FAKE_RUN_STEP_SECONDS="0.2")
    wait_until(lambda: sweeper.cells and checkpoints(sweeper.cells[0]))
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=300)
    (cell,) = sweeper.cells
    old = read_starts(cell)
    sweeper("seed=0", "rerun=true")
    assert read_starts(old_folder(cell)) == old
    assert [start[0] for start in read_starts(cell)] == ["0"]


def test_rerun_moves_no_folder_that_a_process_has_locked(tmp_path):
    rerun = Rerun(tmp_path / "sweep")
    rerun.start_or_join()
    cell = tmp_path / "cell"
    cell.mkdir()
    with hold_run_lock(cell):
        assert not rerun.claim(cell)
    assert rerun.claim(cell)
    assert old_folder(cell).exists()


def test_seeds_repeat_each_cell_and_are_aggregated_in_the_table(sweeper):
    code, out = sweeper("algo.horizon=5,6", "seeds=3", "seed=2", "hydra.sweeper.n_jobs=2")
    assert code == 0, out
    assert sorted(int(row["seed"]) for row in sweeper.rows()) == [2, 2, 3, 3, 4, 4]
    # The fake run's return is 10 * (1 + seed): 30, 40, 50.
    assert out.count("40 ± 10") == 2
    sweeper("algo.horizon=5,6", "seed=2,3,4")
    assert all(len(read_starts(cell)) == 1 for cell in sweeper.cells)


def test_failing_cell_is_reported_with_its_cause_and_stops_no_other(sweeper):
    code, out = sweeper("seed=0,1,2", FAKE_RUN_FAIL_SEED="1")
    assert code == 1
    assert [row["state"] for row in sweeper.rows()] == ["finished", "failed", "finished"]
    assert sweeper.rows()[1]["cause"] == "lr is invalid"
    assert out.rstrip().endswith("1 of 3 runs failed")
    assert sweeper("seed=0,1,2")[0] == 0
    assert [len(read_starts(cell)) for cell in sweeper.cells] == [1, 2, 1]


def test_cell_that_exits_with_0_before_its_end_has_failed(sweeper):
    code, out = sweeper("seed=0,1", FAKE_RUN_EXIT_SEED="0")
    assert code == 1 and out.rstrip().endswith("1 of 2 runs failed")
    assert [row["state"] for row in sweeper.rows()] == ["failed", "finished"]
    assert "run.json" in sweeper.rows()[0]["cause"]
    assert sweeper("seed=0,1")[0] == 0  # the same command does not take it for finished
    assert [len(read_starts(cell)) for cell in sweeper.cells] == [2, 1]


def test_cell_that_runs_out_of_memory_stops_no_other(sweeper):
    code, out = sweeper("seed=0,1", FAKE_RUN_OUT_OF_MEMORY_SEED="0")
    assert code == 1 and out.rstrip().endswith("1 of 2 runs failed")
    assert [row["state"] for row in sweeper.rows()] == ["failed", "finished"]
    assert sweeper.rows()[0]["cause"] == "MemoryError"


def test_refused_cell_stops_no_other(sweeper):
    code, out = sweeper("algo.horizon=0,5")
    assert code == 2
    assert [row["state"] for row in sweeper.rows()] == ["failed", "finished"]
    assert "algo.horizon=0: must be >= 1" in out


def test_killed_run_resumes_from_its_checkpoint(sweeper):
    driver = sweeper.start("seed=0", FAKE_RUN_STEP_SECONDS="0.1")
    wait_until(lambda: sweeper.cells and checkpoints(sweeper.cells[0]))
    (cell,) = sweeper.cells
    os.kill(int(read_starts(cell)[0][1]), signal.SIGKILL)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, out
    first, second = read_starts(cell)
    assert (first[0], int(second[0]) >= 1) == ("0", True)
    assert sweeper.rows()[0]["eval/return"] == "10.0"


def test_killed_driver_ends_its_runs_and_the_same_command_resumes_them(sweeper):
    driver = sweeper.start("seed=0,1", "hydra.sweeper.n_jobs=2", FAKE_RUN_STEP_SECONDS="0.2")
    wait_until(lambda: sum(bool(checkpoints(cell)) for cell in sweeper.cells) == 2)
    driver.kill()
    wait_until(lambda: all(is_gone(read_starts(cell)[0][1]) for cell in sweeper.cells))
    code, out = sweeper("seed=0,1", "hydra.sweeper.n_jobs=2")
    assert code == 0, out
    assert [len(read_starts(cell)) for cell in sweeper.cells] == [2, 2]
    assert all(int(read_starts(cell)[1][0]) >= 1 for cell in sweeper.cells)


def test_ctrl_c_writes_checkpoints_and_the_same_command_resumes_them(sweeper):
    driver = sweeper.start("seed=0,1", FAKE_RUN_STEP_SECONDS="0.2")
    wait_until(lambda: sweeper.cells and checkpoints(sweeper.cells[0]))
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=300)
    assert driver.returncode == 130, out
    assert is_gone(read_starts(sweeper.cells[0])[0][1])
    assert sweeper("seed=0,1")[0] == 0
    assert [len(read_starts(cell)) for cell in sweeper.cells] == [2, 1]


def test_two_drivers_share_a_grid(sweeper):
    drivers = [sweeper.start("seed=0,1,2,3", FAKE_RUN_STEP_SECONDS="0.05") for _ in range(2)]
    for driver in drivers:
        out, _ = driver.communicate(timeout=300)
        assert driver.returncode == 0, out
    assert [len(read_starts(cell)) for cell in sweeper.cells] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    "flags",
    [["--config-dir=whole", "--config-name=other"], ["--config-path={whole}"]],
    ids=["another file", "another folder"],
)
def test_runs_use_the_configuration_that_the_driver_was_given(sweeper, tmp_path, flags):
    conf = tmp_path / "whole"
    shutil.copytree(ROOT / "conf", conf)
    text = (conf / "config.yaml").read_text().replace("replay_ratio: 0.5", "replay_ratio: 2")
    name = "other" if len(flags) == 2 else "config"
    (conf / name).with_suffix(".yaml").write_text(text)
    flags = [flag.format(whole=os.path.relpath(conf, tmp_path)) for flag in flags]
    sweeper("seed=0,1")
    code, out = sweeper("seed=0,1", *flags)
    assert code == 0, out
    assert len(sweeper.cells) == 4
    assert len([*tmp_path.glob("outputs/sweeps/*")]) == 2
    runs = [json.loads((cell / "config.yaml").read_text()) for cell in sweeper.cells]
    run_flags = {tuple(f"{k}={run[k]}" for k in run if k.startswith("--")) for run in runs}
    assert len(run_flags) == 2  # none for the first two runs, the same for the other two
    command = [sys.executable, str(ROOT / "run.py"), *max(run_flags, key=len), "--cfg", "job"]
    composed = subprocess.check_output(command, cwd="/", text=True)
    assert "\nreplay_ratio: 2.0\n" in composed


def test_slots_share_the_cores_and_get_their_devices(sweeper, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sweeper("seed=0,1", "hydra.sweeper.devices=[0,1]", "hydra.sweeper.per_device=1")
    fair = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert {read_starts(cell)[0][2] for cell in sweeper.cells} == {fair}
    assert {read_starts(cell)[0][3] for cell in sweeper.cells} == {"0", "1"}


@pytest.mark.parametrize(
    "command",
    [["seed=0,1,2"], ["algo.optimizer.lr=interval(1e-4,1e-2)", "hydra.sweeper.n_trials=3"]],
    ids=["grid", "study"],
)
def test_run_with_a_damaged_file_fails_and_the_others_go_on(sweeper, command):
    code, out = sweeper(*command, FAKE_RUN_BAD_METRICS="0", FAKE_RUN_CUT_RECORD="1")
    assert code == 1, out
    first, second, third = sweeper.rows()
    assert [row["state"] for row in (first, second, third)] == ["failed", "failed", "finished"]
    assert "metrics.jsonl" in first["cause"] and "run.json" in second["cause"]
    assert "Traceback" not in out
    code, out = sweeper(*command)  # the files are still damaged
    assert code == 1 and "Traceback" not in out, out
    assert sweeper.rows()[2]["state"] == "finished"
