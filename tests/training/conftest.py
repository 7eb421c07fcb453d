"""Fixtures shared by tests of whole runs."""

import pytest
from smallest import wait_only

from llmdreamer.tracking import tracker


@pytest.fixture
def untracked(monkeypatch):
    """Keep metrics in the run's folder: no upload process starts."""
    monkeypatch.setattr(tracker, "_start_upload_process", wait_only)
