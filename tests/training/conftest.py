"""What tests of whole runs share."""

import pytest
from smallest import wait_only

from llmdreamer.tracking import tracker


@pytest.fixture
def untracked(monkeypatch):
    """Rows stay in the run's folder."""
    monkeypatch.setattr(tracker, "_start_upload_process", wait_only)
