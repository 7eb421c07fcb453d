"""The MLflow run that stands for a sweep; the runs of its jobs name it as their parent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmdreamer.tracking.record import Known, RunFiles, Status, Wanted, load, save
from llmdreamer.tracking.store import connect, metric_key, prepare, shorten, speaking
from llmdreamer.utils.redact import redact

PARENT_VARIABLE = "LLMDREAMER_PARENT_RUN"
"""Environment variable in which a sweep's jobs find the id of their parent run."""
TRIAL_VARIABLE = "LLMDREAMER_TRIAL"
"""Environment variable in which the run of a sweep finds the tags that say which it is, as JSON."""


@dataclass(frozen=True)
class Child:
    """A job's run as the store has it."""

    name: str
    overrides: str  # its tag `overrides`; empty if it has none
    objective: float | None  # last value; None if it was never logged
    status: str  # RUNNING, FINISHED, FAILED or KILLED


@dataclass(frozen=True)
class Parent:
    """A started parent run."""

    uri: str
    run_id: str

    def children(self, objective: str) -> list[Child]:
        """The runs of the jobs, oldest first. Raises TrackingError."""
        with speaking(self.uri):
            client = connect(self.uri)
            experiment = client.get_run(self.run_id).info.experiment_id
            # Not paged: a sweep of more than 5000 jobs shows the oldest.
            runs = client.search_runs(
                [experiment],
                f"tags.`mlflow.parentRunId` = '{self.run_id}'",
                max_results=5000,
                order_by=["attributes.start_time ASC"],
            )
            return [
                Child(
                    name=run.info.run_name,
                    overrides=run.data.tags.get("overrides", ""),
                    objective=run.data.metrics.get(metric_key(objective)),
                    status=run.info.status,
                )
                for run in runs
            ]

    def end(self, status: Status, note: str, table: Path) -> None:
        """Store the results (`note` in Markdown, `table` a file) and the status."""
        with speaking(self.uri):
            client = connect(self.uri)
            if table.exists():
                client.log_artifact(self.run_id, str(table))
            client.set_tag(self.run_id, "mlflow.note.content", shorten(note))
            client.set_terminated(self.run_id, status)


def start_parent(
    folder: Path, uri: str, experiment: str, tags: Mapping[str, str], note: str
) -> Parent:
    """Prepare the store and begin the run of the sweep in `folder`, or go on with it.

    The same folder is the same sweep: a sweep that is started again keeps its run, which
    `folder/mlflow.json` names.

    Raises:
        TrackingError: if the store cannot be reached.
    """
    with speaking(uri):
        experiment_id = prepare(uri, experiment)
        client = connect(uri)
        file = folder / "mlflow.json"
        known = load(Known, file)
        all_tags = {**tags, "mlflow.note.content": shorten(note)}
        here = (redact(uri), experiment)
        if known is not None and known.run_id and (known.uri, known.experiment) == here:
            client.update_run(known.run_id, status="RUNNING")
            for key, value in all_tags.items():
                client.set_tag(known.run_id, key, value)
            return Parent(uri, known.run_id)
        run = client.create_run(
            experiment_id,
            start_time=int(time.time() * 1000),
            tags={key: shorten(value) for key, value in all_tags.items()},
            run_name=_name(folder),
        )
        save(Known(*here, key="", run_id=run.info.run_id), file)
        return Parent(uri, run.info.run_id)


def tag_run(run_dir: Path, uri: str, key: str, value: str) -> None:
    """Set a tag of a run that has ended. Raises TrackingError.

    The shipper may still be at it, or the store be away: whoever uploads the rest tells the tag.
    """
    files = RunFiles(run_dir)
    wanted, known = load(Wanted, files.wanted), load(Known, files.known)
    if wanted is None:
        return
    wanted.tags[key] = value
    save(wanted, files.wanted)
    if known is None or known.run_id is None or known.uri != redact(uri):
        return
    with speaking(uri):
        connect(uri).set_tag(known.run_id, key, shorten(value))


def _name(folder: Path) -> str:
    """Hydra names a sweep's folder by its time, in one of its date: the time alone says little."""
    name = folder.name
    return name if any(letter.isalpha() for letter in name) else f"{folder.parent.name}/{name}"
