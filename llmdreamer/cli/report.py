"""`python -m llmdreamer report STORE_OR_SWEEP`: the comparison of arms as one page and its pictures."""

from __future__ import annotations

import argparse
import csv
import html
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdreamer.tracking.record import MlflowRunRef
from llmdreamer.tracking.record import load as load_record
from llmdreamer.tracking.store import resolve_uri, sqlite_uri
from llmdreamer.tracking.uploader import with_password
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import redact

if TYPE_CHECKING:
    from llmdreamer.analysis.part import Part

_STATUSES = ("FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED")  # MLflow's
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
img { max-width: 100%; height: auto; }
h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: left; border-bottom: 1px solid #ddd; }
footer { margin-top: 3rem; color: #555; font-size: 0.85rem; }
"""


@dataclass(frozen=True)
class Source:
    """Where the runs are: a store, an experiment, and the sweep's run if only its jobs count."""

    uri: str
    experiment: str
    parent: str | None = None
    shared: tuple[str, ...] = ()  # runs of other sweeps that this one found finished


def main(argv: list[str] | None = None) -> int:
    """Write the report; 0, or 2 after a line that says why there is none."""
    parser = argparse.ArgumentParser(prog="python -m llmdreamer report", description=__doc__)
    parser.add_argument("source", help="a sweep's folder, a .db file, or a tracking URI")
    parser.add_argument("--experiment", help="in MLflow (default: the sweep's, or llmdreamer)")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder (default report)")
    parser.add_argument(
        "--status",
        default="FINISHED",
        help="of the runs that count, with commas (default FINISHED; others: FAILED,KILLED,RUNNING)",
    )
    args = parser.parse_args(argv)
    try:
        statuses = [name.strip().upper() for name in args.status.split(",")]
        if unknown := set(statuses) - set(_STATUSES):
            raise ConfigError(
                f"--status {args.status}: {', '.join(sorted(unknown))} is none of {', '.join(_STATUSES)}"
            )
        source = find(args.source, args.experiment)
        typed = sys.argv[1:] if argv is None else argv
        command = f"{parser.prog} {redact(shlex.join(typed))}"
        page = write(source, args.out, statuses, command)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(page)
    return 0


def find(source: str, experiment: str | None = None) -> Source:
    """Make out what was named.

    Raises:
        ConfigError: if it is neither a store nor the folder of a sweep.
    """
    path = Path(source)
    if path.is_file():
        return Source(sqlite_uri(path.resolve()), experiment or "llmdreamer")
    if path.is_dir():
        mlflow_run = load_record(MlflowRunRef, path / "mlflow.json")
        if mlflow_run is not None and mlflow_run.run_id is not None:
            uri = with_password(mlflow_run.uri)
            return Source(
                uri, experiment or mlflow_run.experiment, mlflow_run.run_id, _listed(path)
            )
        if (path / "mlflow.db").exists():
            return Source(sqlite_uri(path.resolve() / "mlflow.db"), experiment or "llmdreamer")
        raise ConfigError(
            f"{source} is no sweep and holds no store: it has neither mlflow.json nor mlflow.db"
        )
    if ":" not in source:
        raise ConfigError(f"{source}: there is no such file or folder")
    return Source(resolve_uri(source, Path.cwd()), experiment or "llmdreamer")


def _listed(sweep: Path) -> tuple[str, ...]:
    """The runs in the folders that a grid's table names: a cell is run once, by whichever sweep comes
    first, and counts for all."""
    table = sweep / "results.csv"
    if not table.exists():
        return ()
    with open(table, encoding="utf-8", newline="") as file:
        folders = [row.get("folder") for row in csv.DictReader(file)]
    found = [
        load_record(MlflowRunRef, Path(folder) / "mlflow.json") for folder in folders if folder
    ]
    return tuple(known.run_id for known in found if known is not None and known.run_id is not None)


def write(source: Source, folder: Path, statuses: list[str], command: str) -> Path:
    """Write `index.html`, figures, tables and `returns.csv` into `folder`; return the page.

    Args:
        command: what was typed, for whoever reads the page.

    Raises:
        ConfigError: if there are no runs to report, or the folder cannot be written.
    """
    # Imported late: a typing error does without pandas and matplotlib.
    from llmdreamer.analysis.compare import KEYS, everything, returns
    from llmdreamer.analysis.load import load
    from llmdreamer.analysis.part import save

    records = load(
        source.uri,
        source.experiment,
        KEYS,
        parent=source.parent,
        shared=source.shared,
        statuses=statuses,
    )
    if records.runs.empty:
        raise ConfigError(" ".join(records.notes) or f"{records.source}: no runs")
    parts = everything(records)
    try:
        for part in parts:
            save(part, folder)
        returns(records).to_csv(folder / "returns.csv", index=False)
        page = folder / "index.html"
        page.write_text(_page(f"llmdreamer: {source.experiment}", parts, command), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror})") from error
    return page


def _page(title: str, parts: list[Part], command: str) -> str:
    body = "\n".join(f"<section>{part._repr_html_()}</section>" for part in parts)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>{_STYLE}</style>
<h1>{html.escape(title)}</h1>
{body}
<footer>Made by <code>{html.escape(command)}</code>.
Interquartile mean, stratified percentile bootstrap (2000 resamples, seed 0; strata:
environments), performance profile and probability of improvement after Agarwal et al. 2021,
arXiv:2108.13264.</footer>
</html>
"""


if __name__ == "__main__":
    sys.exit(main())
