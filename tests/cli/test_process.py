"""The command in its own process: any working directory, light imports, exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import assert_names

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
HEAVY = ("torch", "mlflow", "transformers", "peft", "optuna", "gymnasium", "matplotlib")


def command(script, *argv, cwd, **env):
    return subprocess.run(
        [sys.executable, str(ROOT / script), *argv],
        cwd=cwd,
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("script", ["run.py", "main.py"])
def test_configuration_is_shown_from_any_folder(tmp_path, script):
    done = command(script, "exp=llm_dreamer_v3", "--cfg", "job", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "total_steps: 5000000" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_sweep_specification_is_found_from_any_folder(tmp_path):
    done = command("run.py", "sweeps=smoke", "--cfg", "job", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "total_steps: 128" in done.stdout


def test_mistake_is_one_line_and_exit_code_2(tmp_path):
    done = command("run.py", "backbone=gtp2", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    options = "block_gru, gpt2, gru, hf, mamba, mamba2, pythia, qwen3, smollm2"
    assert_names(done.stderr, "backbone=gtp2", options, "'gpt2'")


def test_hydra_full_error_shows_the_traceback(tmp_path):
    done = command("run.py", "backbone=gtp2", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("argv", [["--help"], ["--cfg", "job"], ["algo.horizon=0"]])
def test_command_without_training_imports_no_heavy_package(tmp_path, argv):
    done = command("run.py", *argv, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "hydra" in loaded
    assert loaded.isdisjoint(HEAVY)
