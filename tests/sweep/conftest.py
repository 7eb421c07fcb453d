"""Fixtures for sweeps: `sweeper` runs drivers, `make_plan` reads a sweep without starting it."""

import os
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from llmdreamer import cli, config
from llmdreamer.sweep.plan import read_plan

sys.path.insert(0, str(Path(__file__).parent))  # for `import sweep_helpers`

from sweep_helpers import Sweeper

ROOT = Path(os.environ["LLMDREAMER_ROOT"])


@pytest.fixture
def sweeper(tmp_path: Path):
    sweeper = Sweeper(tmp_path)
    yield sweeper
    for driver in sweeper.drivers:
        driver.kill()
        driver.wait()


@pytest.fixture
def make_plan(tmp_path, monkeypatch):
    """Yield one plan, as in `for plan in make_plan("sweeps=lora")`; Hydra can compose inside the loop."""
    monkeypatch.chdir(tmp_path)
    return compose_plan


def compose_plan(*overrides):
    config.register()
    cli.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf")):
        hydra = GlobalHydra.instance().hydra
        loader = hydra.config_loader
        master = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
        yield read_plan(master, loader, master.hydra.overrides.task)


@pytest.fixture(scope="module")
def study_plan():
    """A study `s` of one learning rate, composed once; its folder is in the working directory."""
    space = "algo.optimizer.lr=interval(1e-4,1e-2)"
    yield from compose_plan("hydra.sweeper.study_name=s", space, "hydra.sweeper.n_trials=3")
