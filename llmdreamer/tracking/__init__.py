"""The record of runs: a local spool that is the truth, and MLflow told from it."""

from llmdreamer.redaction import as_typed, redact
from llmdreamer.tracking.record import RunInfo, flatten
from llmdreamer.tracking.spool import Spool
from llmdreamer.tracking.store import TrackingError, prepare, resolve_uri, ui_command
from llmdreamer.tracking.tracker import Tracker

__all__ = [
    "RunInfo",
    "Spool",
    "Tracker",
    "TrackingError",
    "as_typed",
    "flatten",
    "prepare",
    "redact",
    "resolve_uri",
    "ui_command",
]
