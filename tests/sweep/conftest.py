"""Lets `driving` be imported by name, ends what a test has started, and reads a sweep without starting it."""

import os
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from llmdreamer import cli, config
from llmdreamer.sweep.plan import read_plan

sys.path.insert(0, str(Path(__file__).parent))

from driving import Sweeping

ROOT = Path(os.environ["LLMDREAMER_ROOT"])


@pytest.fixture
def sweeping(tmp_path: Path):
    sweeping = Sweeping(tmp_path)
    yield sweeping
    for driver in sweeping.drivers:
        driver.kill()
        driver.wait()


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Loop over `plan("sweeps=lora")`: the one plan, for as long as Hydra is there to compose."""
    monkeypatch.chdir(tmp_path)

    def planned(*overrides):
        config.register()
        cli.register()
        with initialize_config_dir(str(ROOT / "conf")):
            hydra = GlobalHydra.instance().hydra
            loader = hydra.config_loader
            master = loader.load_configuration("config", list(overrides), RunMode.MULTIRUN)
            yield read_plan(master, loader, master.hydra.overrides.task)

    return planned
