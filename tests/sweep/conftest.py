"""Lets `driving` be imported by name, and ends what a test has started."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from driving import Sweeping


@pytest.fixture
def sweeping(tmp_path: Path):
    sweeping = Sweeping(tmp_path)
    yield sweeping
    for driver in sweeping.drivers:
        driver.kill()
        driver.wait()
