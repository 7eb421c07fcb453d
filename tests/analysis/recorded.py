"""The recorded runs under `data/`, and what is made to go wrong in copies of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmdreamer.tracking.record import RunFiles, UploadCursor, load, save

DATA = Path(__file__).parent / "data"
EXPERIMENT = "llmdreamer"


@dataclass
class Recorded:
    """The store, and the folder of each run in it by name."""

    uri: str
    parent: str
    folders: dict[str, Path] = field(default_factory=dict)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """What the run itself wrote: the truth that the analysis is held against."""
        lines = (self.folders[name] / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def curve(self, name: str, key: str) -> list[tuple[int, float]]:
        rows = [row for row in self.rows(name) if key in row["metrics"]]
        return [(row["env_step"], row["metrics"][key]) for row in rows]

    def run_id(self, name: str) -> str:
        return json.loads((self.folders[name] / "mlflow.json").read_text())["run_id"]


def add(
    store: Recorded,
    root: Path,
    name: str,
    source: str,
    *,
    rows: int | None = None,
    status: str | None = "as it ended",
    seed: int | None = None,
    started_earlier: float = 0.0,
    tags: dict[str, str] | None = None,
) -> Path:
    """Put the run `source` in a folder of its own, changed only in what is named."""
    folder = root / name
    files = RunFiles(folder)
    files.run_record.parent.mkdir(parents=True)
    wanted = json.loads((DATA / source / "run.json").read_text())
    if status != "as it ended":
        wanted["status"], wanted["ended"] = status, None
    if seed is not None:
        wanted["tags"]["seed"], wanted["params"]["seed"] = str(seed), seed
    wanted["started"] -= started_earlier
    wanted["tags"] |= tags or {}
    files.run_record.write_text(json.dumps(wanted))
    lines = (DATA / source / "metrics.jsonl").read_text().splitlines(keepends=True)
    files.metrics.write_text("".join(lines[:rows]))
    store.folders[name] = folder
    return folder


KEPT_ROWS = 40  # rows before the checkpoint that the resumed run goes on from
FIRST_ROWS = 70  # rows of its first life


def first_life(store: Recorded, root: Path) -> None:
    """The first rows of one run; after the checkpoint, those of another seed: another life."""
    folder = add(store, root, "resumed", "small_gru_0", status=None, seed=9)
    mine, other = (
        (DATA / source / "metrics.jsonl").read_text().splitlines(keepends=True)
        for source in ("small_gru_0", "small_gru_2")
    )
    base = json.loads(mine[0])["time"] - json.loads(other[0])["time"]
    reached = json.loads(mine[KEPT_ROWS - 1])["env_step"]
    later = [row for row in map(json.loads, other) if row["env_step"] > reached]
    for row in later:
        row["time"] += base
    lines = mine[:KEPT_ROWS] + [json.dumps(row) + "\n" for row in later[: FIRST_ROWS - KEPT_ROWS]]
    (folder / "metrics.jsonl").write_text("".join(lines))


def second_life(store: Recorded) -> None:
    """Resumed an hour later, on a machine that does not know what was told after the checkpoint."""
    folder = store.folders["resumed"]
    files = RunFiles(folder)
    lines = (DATA / "small_gru_0" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    for row in rows[KEPT_ROWS:]:
        row["time"] += 3600
    text = [json.dumps(row) + "\n" for row in rows]
    # Byte for byte as they were: what MLflow has of them is not told again.
    kept = "".join(line + "\n" for line in lines[:KEPT_ROWS])
    files.metrics.write_text(kept + "".join(text[KEPT_ROWS:]))
    cursor = load(UploadCursor, files.upload_cursor)
    assert cursor is not None
    cursor.uploaded_bytes = cursor.attempted_bytes = len(kept.encode())
    save(cursor, files.upload_cursor)
    wanted = json.loads(files.run_record.read_text())
    wanted["status"] = "FINISHED"
    files.run_record.write_text(json.dumps(wanted))
