"""Checks what a run's folder holds, so that a new run never deletes the files of another."""

from __future__ import annotations

from pathlib import Path

from llmdreamer.config import AUTO, Config, from_yaml
from llmdreamer.tracking.record import RUN_RECORD_FILE, RunFiles, RunRecord, load
from llmdreamer.utils.command_line import argument
from llmdreamer.utils.errors import ConfigError

_CHECKPOINTS = "checkpoints/step-*.pt"
# Any of these is left by a run. Replay folders are `replay`, `replay-1`, ...
_FILES_OF_A_RUN = (
    *(_CHECKPOINTS, "config.yaml", "metrics.jsonl", RUN_RECORD_FILE, "replay*/meta.json"),
    "best/*.pt",
)


def file_of_a_run(folder: Path) -> Path | None:
    """Return a file in the folder that only a run writes; None if no run has written there."""
    files = (path for pattern in _FILES_OF_A_RUN for path in folder.glob(pattern))
    return next(files, None)


def refusal(folder: Path, config: Config, *, in_sweep: bool) -> str | None:
    """Return why `config` must not run in `folder`, in one line; None if it may.

    A run starts over in its folder if it was stopped before its first checkpoint, with `resume=auto` or
    by the driver of its sweep. Any other run starts in a folder without files of a run.

    Args:
        in_sweep: whether the driver of a sweep started the process.
    """
    if config.resume not in (None, AUTO):
        if Path(str(config.resume)).resolve() == folder.resolve():
            return None
        return f"resume={config.resume} resumes in its own folder, not in {folder}: leave out hydra.run.dir"
    may_start_over = in_sweep or config.resume == AUTO
    file = file_of_a_run(folder)
    if file is None or (may_start_over and not _must_be_kept(folder, config)):
        return None
    if (folder / "config.yaml").exists() and any(folder.glob(_CHECKPOINTS)):
        resume = argument("resume", folder)
        return f"{folder} holds a run: resume it with {resume}, or choose another folder"
    return f"{folder} holds {file.relative_to(folder)} of a run: choose another folder, or move it away"


def _must_be_kept(folder: Path, config: Config) -> bool:
    """Return True if the folder's run has checkpoints, is finished, or is not the run of `config`."""
    if any(folder.glob(_CHECKPOINTS)):
        return True
    record = load(RunRecord, RunFiles(folder).run_record)
    if record is not None and record.status == "FINISHED":
        return True
    if config.run_name is None or not (folder / "config.yaml").exists():
        return False
    try:
        return from_yaml(folder / "config.yaml", config.trust).run_name != config.run_name
    except ConfigError:
        return True
