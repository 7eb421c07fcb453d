"""The recorded runs in `data/`, and modified copies of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmdreamer.tracking.record import RunFiles, UploadCursor, load, save

DATA = Path(__file__).parent / "data"
EXPERIMENT = "llmdreamer"


@dataclass
class Recorded:
    """The store, and the folder of each of its runs by name."""

    uri: str
    parent: str
    folders: dict[str, Path] = field(default_factory=dict)

    def records(self, name: str) -> list[dict[str, Any]]:
        """Return the records of the run's spool: the expected values of the analysis."""
        lines = (self.folders[name] / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def curve(self, name: str, key: str) -> list[tuple[int, float]]:
        records = [entry for entry in self.records(name) if key in entry["metrics"]]
        return [(entry["env_step"], entry["metrics"][key]) for entry in records]

    def run_id(self, name: str) -> str:
        return json.loads((self.folders[name] / "mlflow.json").read_text())["run_id"]


def add(
    store: Recorded,
    root: Path,
    name: str,
    source: str,
    *,
    length: int | None = None,
    status: str | None = "as it ended",
    seed: int | None = None,
    started_earlier: float = 0.0,
    tags: dict[str, str] | None = None,
) -> Path:
    """Copy the run `source` to a new folder, with only the given changes."""
    folder = root / name
    files = RunFiles(folder)
    files.run_record.parent.mkdir(parents=True)
    record = json.loads((DATA / source / "run.json").read_text())
    if status != "as it ended":
        record["status"], record["ended"] = status, None
    if seed is not None:
        record["tags"]["seed"], record["params"]["seed"] = str(seed), seed
    record["started"] -= started_earlier
    record["tags"] |= tags or {}
    files.run_record.write_text(json.dumps(record))
    lines = (DATA / source / "metrics.jsonl").read_text().splitlines(keepends=True)
    files.metrics.write_text("".join(lines[:length]))
    store.folders[name] = folder
    return folder


KEPT_RECORDS = 40  # records before the checkpoint from which the run resumes
FIRST_RECORDS = 70  # records of the first attempt


def first_attempt(store: Recorded, root: Path) -> None:
    """Add a run with the records of one seed up to the checkpoint, and of another seed after it."""
    folder = add(store, root, "resumed", "small_gru_0", status=None, seed=9)
    own, other = (
        (DATA / source / "metrics.jsonl").read_text().splitlines(keepends=True)
        for source in ("small_gru_0", "small_gru_2")
    )
    base = json.loads(own[0])["time"] - json.loads(other[0])["time"]
    reached = json.loads(own[KEPT_RECORDS - 1])["env_step"]
    later = [entry for entry in map(json.loads, other) if entry["env_step"] > reached]
    for entry in later:
        entry["time"] += base
    lines = own[:KEPT_RECORDS] + [
        json.dumps(entry) + "\n" for entry in later[: FIRST_RECORDS - KEPT_RECORDS]
    ]
    (folder / "metrics.jsonl").write_text("".join(lines))


def resume(store: Recorded) -> None:
    """Resume that run an hour later, without a record of what was uploaded after the checkpoint."""
    folder = store.folders["resumed"]
    files = RunFiles(folder)
    lines = (DATA / "small_gru_0" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for entry in records[KEPT_RECORDS:]:
        entry["time"] += 3600
    text = [json.dumps(entry) + "\n" for entry in records]
    # Unchanged bytes: these records are not uploaded again.
    kept = "".join(line + "\n" for line in lines[:KEPT_RECORDS])
    files.metrics.write_text(kept + "".join(text[KEPT_RECORDS:]))
    cursor = load(UploadCursor, files.upload_cursor)
    assert cursor is not None
    cursor.uploaded_bytes = cursor.attempted_bytes = len(kept.encode())
    save(cursor, files.upload_cursor)
    record = json.loads(files.run_record.read_text())
    record["status"] = "FINISHED"
    files.run_record.write_text(json.dumps(record))
