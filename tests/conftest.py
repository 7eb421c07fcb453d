"""Setup of all tests: no network, one thread per process, and fixtures that many tests use."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A package of another author in tests/data, with environments `lightroom:...`.
sys.path.insert(0, str(ROOT / "tests" / "data"))
sys.path.insert(0, str(ROOT / "tests" / "shared"))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LLMDREAMER_ROOT"] = str(ROOT)
# torch reads it at its first import, so it must be set here without importing torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("HYDRA_FULL_ERROR", None)

import hydra
import pytest

from llmdreamer import config
from llmdreamer.config import Config

if importlib.util.find_spec("absl") is not None:
    # dm_control's logging keeps pytest's stderr and closes it when Hydra sets up logging.
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def compose() -> Callable[..., Config]:
    """Return a function that composes a configuration: `compose("model=S", "algo.horizon=5")`."""

    @cache
    def composed(*overrides: str) -> Config:
        config.register()
        with hydra.initialize_config_dir(str(ROOT / "conf")):
            return config.load(hydra.compose("config", overrides=list(overrides)), overrides)

    # A composition takes much longer than a copy, and many tests compose the same.
    return lambda *overrides: deepcopy(composed(*overrides))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a tmpfs, `disk("size=1m")`, or remounts it with new options."""
    folder = tmp_path / "disk"

    def mount(options: str) -> Path:
        mounted = folder.exists()
        folder.mkdir(exist_ok=True)
        options = f"remount,{options}" if mounted else options
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            folder.rmdir()
            pytest.skip("mounting needs root")
        return folder

    yield mount
    if folder.exists():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
