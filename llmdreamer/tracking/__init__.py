"""Records a run: a local spool holds the metrics, and a separate process copies them to MLflow."""

from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.record import RunInfo
from llmdreamer.tracking.spool import Spool
from llmdreamer.tracking.store import ensure_experiment, resolve_uri, ui_command
from llmdreamer.tracking.tracker import Tracker

__all__ = [
    "RunInfo",
    "Spool",
    "Tracker",
    "TrackingError",
    "ensure_experiment",
    "resolve_uri",
    "ui_command",
]
