"""The wheel, installed beside its dependencies, has the command and all it needs in an empty folder."""

import csv
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from refusals import assert_names
from tiny_run import TINY

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
SHORT = (*TINY, "algo.total_steps=20", "eval.final_episodes=1", "eval.open_loop_windows=0")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([*pip, "wheel", *options, str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def program(wheel, tmp_path_factory):
    """Install the wheel into an environment that also sees the packages of this one."""
    venv = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    # A folder named in a .pth file comes after site-packages, and its own .pth files are not read.
    # So this checkout is not importable there, even if it is installed here.
    site_packages = next(venv.glob("lib/python*/site-packages"))
    (site_packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
    subprocess.run([*pip, "install", "--no-deps", "--no-index", str(wheel)], check=True)
    return venv / "bin" / "llmdreamer"


def typed(folder, *argv):
    variables = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "LLMDREAMER_ROOT")
    }
    return subprocess.run(
        [*map(str, argv)],
        cwd=folder,
        env=variables,
        capture_output=True,
        text=True,
        timeout=1200,  # a guard against hangs: on an idle machine the longest takes 20 s
        check=False,
    )


def test_wheel_holds_every_yaml_file_of_the_repository(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name.removeprefix("llmdreamer/"): archive.read(name)
            for name in archive.namelist()
            if name.endswith(".yaml")
        }
    files = [*ROOT.glob("conf/**/*.yaml"), *ROOT.glob("sweeps/*.yaml")]
    assert packed == {str(path.relative_to(ROOT)): path.read_bytes() for path in files}


def test_installed_command_trains_a_sweep_and_reads_it_in_an_empty_folder(program, tmp_path):
    done = typed(tmp_path, program, "sweep", "seed=0,1", "hydra.sweeper.n_jobs=2", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    (table,) = tmp_path.glob("outputs/sweeps/*/results.csv")
    with open(table) as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["state"], row["env_step"]) for row in rows] == [
        ("0", "finished", "20"),
        ("1", "finished", "20"),
    ]
    done = typed(tmp_path, program, "status", table.parent)
    assert_names(done.stdout, "2 finished, of 2")


def test_installed_command_trains_one_run_in_an_empty_folder(program, tmp_path):
    done = typed(tmp_path, program, "train", "run_name=one", "env.processes=true", *SHORT)
    assert (done.returncode, done.stderr) == (0, "")
    assert list((tmp_path / "outputs/one/checkpoints").glob("step-000000000020-*.pt"))


def test_installed_command_finds_options_and_sweeps(program, tmp_path):
    done = typed(tmp_path, program, "train", "sweeps=smoke", "--cfg", "job")
    assert (done.returncode, done.stderr) == (0, "")
    assert "total_steps: 128" in done.stdout
    done = typed(tmp_path, program, "train", "model=S,M")
    assert done.returncode == 2
    assert_names(done.stderr, "llmdreamer sweep model=S,M")
    assert list(tmp_path.iterdir()) == []


def test_module_starts_the_same_command(program, tmp_path):
    python = program.with_name("python")
    done = typed(tmp_path, python, "-m", "llmdreamer", "train", "model=S,M")
    assert done.returncode == 2
    assert_names(done.stderr, "llmdreamer sweep model=S,M")
