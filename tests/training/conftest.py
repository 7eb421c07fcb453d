"""Fixtures shared by tests of whole runs."""

import pytest
from tiny_run import start_idle_uploader

from llmdreamer.tracking import tracker


@pytest.fixture
def untracked(monkeypatch):
    """Keep metrics in the run's folder: no upload process starts."""
    monkeypatch.setattr(tracker, "_start_upload_process", start_idle_uploader)
