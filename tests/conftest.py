"""What every test relies on: no network, one thread a process, a composed configuration on demand."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The package of somebody else's, whose environments are `lightroom:...`.
sys.path.insert(0, str(ROOT / "tests" / "data"))
sys.path.insert(0, str(ROOT / "tests" / "shared"))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["LLMDREAMER_ROOT"] = str(ROOT)
# Read by torch when it is first imported, so tests that do without it stay without it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("HYDRA_FULL_ERROR", None)

import hydra
import pytest

from llmdreamer import config
from llmdreamer.config import Config

if importlib.util.find_spec("absl") is not None:
    # dm_control's logging keeps the stderr it found, which is pytest's, and closes it when Hydra
    # sets up its own.
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def compose() -> Callable[..., Config]:
    """The checked configuration of a command line: `compose("model=S", "algo.horizon=5")`."""

    def composed(*overrides: str) -> Config:
        config.register()
        with hydra.initialize_config_dir(str(ROOT / "conf")):
            return config.load(hydra.compose("config", overrides=list(overrides)), overrides)

    return composed


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`disk("size=1m")` is a folder on a disk of its own; once more, the same with other options."""
    folder = tmp_path / "disk"

    def mount(options: str) -> Path:
        again = folder.exists()
        folder.mkdir(exist_ok=True)
        options = f"remount,{options}" if again else options
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            folder.rmdir()
            pytest.skip("only root mounts")
        return folder

    yield mount
    if folder.exists():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
