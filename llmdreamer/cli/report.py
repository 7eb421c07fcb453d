"""`llmdreamer report STORE_OR_SWEEP`: writes the comparison of arms as a page with figures."""

from __future__ import annotations

import argparse
import csv
import html
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmdreamer.cli.common import LATEST, OUTPUTS, check_path, find_sweep_or_latest
from llmdreamer.tracking.record import MlflowRunRef
from llmdreamer.tracking.record import load as load_record
from llmdreamer.tracking.store import resolve_uri, sqlite_uri
from llmdreamer.tracking.uploader import with_password
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.output import print_error, print_line
from llmdreamer.utils.redact import as_typed

if TYPE_CHECKING:
    from llmdreamer.analysis.section import Section

DEFAULT_EXPERIMENT = "llmdreamer"
_STATUSES = ("FINISHED", "FAILED", "KILLED", "RUNNING", "SCHEDULED")  # MLflow's
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem;
  color: #1a1a1a; background: #fff; }
img { max-width: 100%; height: auto; }
h2 { margin-top: 2.5rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: 0.9rem; margin: 1rem 0; }
th, td { padding: 0.3rem 0.7rem; text-align: left; border-bottom: 1px solid #ddd; }
footer { margin-top: 3rem; color: #555; font-size: 0.85rem; }
"""


@dataclass(frozen=True)
class ReportSource:
    """A store and an experiment; with `parent`, only the runs of that sweep count."""

    uri: str
    experiment: str
    parent: str | None = None  # id of the sweep's MLflow run
    shared: tuple[str, ...] = ()  # ids of runs of other sweeps that this one found finished


def main(argv: list[str] | None = None) -> int:
    """Write the report; return 0, or 2 after printing why there is none."""
    parser = argparse.ArgumentParser(prog="llmdreamer report", description=__doc__)
    parser.add_argument(
        "source",
        help="folder of a sweep, a .db file, or a tracking URI;"
        f" '{LATEST}': the sweep below {OUTPUTS}/ that started last",
    )
    parser.add_argument(
        "--experiment", help=f"MLflow experiment (default: the sweep's, or {DEFAULT_EXPERIMENT})"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="output folder (default: report)"
    )
    parser.add_argument(
        "--status",
        help=f"states of the runs that count, comma-separated, of {', '.join(_STATUSES)} (default: finished "
        "runs without smoke tests, and the newest and the longest run of an environment)",
    )
    args = parser.parse_args(argv)
    try:
        statuses = None if args.status is None else _read_statuses(args.status)
        source = find_runs(args.source, args.experiment)
        typed = sys.argv[1:] if argv is None else argv
        command = f"{parser.prog} {as_typed(typed)}"
        page = write_report(source, args.out, statuses, command)
    except ConfigError as error:
        print_error(str(error))
        return 2
    print_line(str(page))
    return 0


def _read_statuses(typed: str) -> list[str]:
    """Read MLflow's statuses, separated by commas.

    Raises:
        ConfigError: if one of them is unknown.
    """
    statuses = [name.strip().upper() for name in typed.split(",")]
    if unknown := set(statuses) - set(_STATUSES):
        raise ConfigError(
            f"--status {typed}: unknown {', '.join(sorted(unknown))}; "
            f"choose from {', '.join(_STATUSES)}"
        )
    return statuses


def find_runs(source: str, experiment: str | None = None) -> ReportSource:
    """Return the runs that a sweep's folder, a database file or a tracking URI names; `latest` is a sweep.

    Raises:
        ConfigError: if it is none of these, or `mlflow.json` is damaged.
    """
    if "://" in source:  # may be longer than the name of a file
        return ReportSource(resolve_uri(source, Path.cwd()), experiment or DEFAULT_EXPERIMENT)
    check_path(source)
    path = Path(source)
    if source == LATEST and not path.exists():
        path = find_sweep_or_latest(source, Path(OUTPUTS))
    if path.is_file():
        return ReportSource(sqlite_uri(path.resolve()), experiment or DEFAULT_EXPERIMENT)
    if path.is_dir():
        mlflow_run = load_record(MlflowRunRef, path / "mlflow.json")
        if mlflow_run is not None and mlflow_run.run_id is not None:
            uri = with_password(mlflow_run.uri)
            return ReportSource(
                uri, experiment or mlflow_run.experiment, mlflow_run.run_id, _shared_runs(path)
            )
        if (path / "mlflow.db").exists():
            return ReportSource(
                sqlite_uri(path.resolve() / "mlflow.db"), experiment or DEFAULT_EXPERIMENT
            )
        raise ConfigError(
            f"{path} is not the folder of a sweep or a store: it has neither mlflow.json nor mlflow.db"
        )
    if ":" not in source:
        raise ConfigError(f"{source}: there is no such file or folder")
    return ReportSource(resolve_uri(source, Path.cwd()), experiment or DEFAULT_EXPERIMENT)


def _shared_runs(sweep: Path) -> tuple[str, ...]:
    """Return the MLflow ids of the runs in the folders that the sweep's results.csv lists.

    A cell is run only once, by the first sweep that contains it, and counts for all of them.

    Raises:
        ConfigError: if the table cannot be read, or the record of a run is damaged.
    """
    table = sweep / "results.csv"
    if not table.exists():
        return ()
    try:
        with open(table, encoding="utf-8", newline="") as file:
            folders = [row.get("folder") for row in csv.DictReader(file)]
        runs = [load_record(MlflowRunRef, Path(name) / "mlflow.json") for name in folders if name]
    except (OSError, UnicodeDecodeError, csv.Error) as error:  # a folder's name may be too long
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{table} cannot be read: {reason}") from error
    return tuple(run.run_id for run in runs if run is not None and run.run_id is not None)


def write_report(
    source: ReportSource, folder: Path, statuses: list[str] | None, command: str
) -> Path:
    """Write `index.html`, figures, tables and `returns.csv` into `folder`; return the page.

    Args:
        statuses: of the runs that count; None: as `analysis.load.load` chooses.
        command: shown on the page.

    Raises:
        ConfigError: if there are no runs to report, or the folder cannot be written.
    """
    # Imported here so that a mistake on the command line is reported quickly.
    from llmdreamer.analysis.compare import KEYS, all_sections, returns
    from llmdreamer.analysis.load import load
    from llmdreamer.analysis.section import save_section

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
    sections = all_sections(records)
    try:
        for section in sections:
            save_section(section, folder)
        returns(records).to_csv(folder / "returns.csv", index=False)
        page = folder / "index.html"
        page.write_text(
            _page(f"llmdreamer: {source.experiment}", sections, command), encoding="utf-8"
        )
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written ({error.strerror})") from error
    return page


def _page(title: str, sections: list[Section], command: str) -> str:
    body = "\n".join(f"<section>{section._repr_html_()}</section>" for section in sections)
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
environments), performance profile and probability of improvement as in Agarwal et al. 2021,
arXiv:2108.13264.</footer>
</html>
"""


if __name__ == "__main__":
    sys.exit(main())
