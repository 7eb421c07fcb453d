"""The notebooks run from top to bottom, on recorded runs and on nothing, without a traceback."""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient
from recorded import EXPERIMENT, Recorded

from llmdreamer.analysis.load import load
from llmdreamer.cli.report import find
from llmdreamer.cli.report import main as report
from llmdreamer.tracking.record import MlflowRunRef, save
from llmdreamer.utils.redact import redact

ANALYSIS = Path(__file__).parents[2] / "analysis"
NOTEBOOKS = sorted(ANALYSIS.glob("*.py"))


def execute(paths: list[Path], folder: Path) -> str:
    """Everything that the notebooks show, in text. One kernel runs them all: starting one is slow."""
    whole = nbformat.v4.new_notebook()
    for path in paths:
        whole.cells += jupytext.read(path).cells
    NotebookClient(whole, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in whole.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    return "\n".join(output.get("data", {}).get("text/html", "") for output in outputs)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ANALYSIS.parent))
    for name in ("STUDY", "STUDY_STORAGE", "RUN", "PUBLISHED"):
        monkeypatch.delenv(f"LLMDREAMER_{name}", raising=False)


def test_they_show_recorded_runs(recorded: Recorded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMDREAMER_STORE", recorded.uri)
    monkeypatch.setenv("LLMDREAMER_EXPERIMENT", EXPERIMENT)
    shown = execute(NOTEBOOKS, ANALYSIS)
    assert shown.count("data:image/png") >= 7
    assert "no difference detectable at n = 3" in shown
    assert "there is no study" in shown and "shown alone" in shown
    assert "1 FAILED" in shown


def test_they_say_so_where_there_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LLMDREAMER_STORE", raising=False)
    monkeypatch.setenv("LLMDREAMER_PUBLISHED", str(ANALYSIS / "data" / "dmc_proprio.csv"))
    shown = execute(NOTEBOOKS, tmp_path)
    assert shown.count("there is no store at") >= 4
    assert shown.count("data:image/png") == 1  # the published curves


def test_every_cell_is_thin():
    for path in NOTEBOOKS:
        for cell in jupytext.read(path).cells:
            lines = [line for line in cell.source.splitlines() if "import" not in line and line]
            assert len(lines) <= 5, (path.name, cell.source)


def test_the_report_is_one_page_and_its_pictures(recorded: Recorded, tmp_path: Path, capsys):
    database = recorded.uri.removeprefix("sqlite:///")
    assert report([database, "--experiment", EXPERIMENT, "--out", str(tmp_path / "out")]) == 0
    page = Path(capsys.readouterr().out.strip())
    text = page.read_text()
    assert text.count("data:image/png") >= 5
    assert 'src="http' not in text and "<link" not in text and "<script" not in text
    assert (tmp_path / "out" / "curves-env-step.svg").exists()
    assert f"python -m llmdreamer report {database} --experiment {EXPERIMENT}" in text
    assert "Commit of the code that ran" in text


def test_the_report_of_a_sweep_counts_its_jobs_only(recorded: Recorded, tmp_path: Path, capsys):
    folder = next(Path(recorded.uri.removeprefix("sqlite:///")).parent.glob("2026*/*"))
    assert report([str(folder), "--out", str(tmp_path / "out")]) == 0
    runs = (tmp_path / "out" / "runs.csv").read_text().splitlines()
    assert runs == [
        "label,env,n,seeds",
        'gru,CartPole-v1,3,"0, 1, 2"',
        'scratch,CartPole-v1,3,"0, 1, 2"',
    ]


def test_a_cell_that_another_sweep_had_run_counts_for_both(recorded: Recorded, tmp_path: Path):
    mine = json.loads((recorded.folders["small_gru_0"] / "mlflow.json").read_text())
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "mlflow.json").write_text(json.dumps(mine | {"run_id": "of a sweep with no jobs"}))
    rows = [str(recorded.folders[name]) for name in ("small_gru_0", "small_gru_1")]
    (sweep / "results.csv").write_text("\n".join(["seed,folder", *(f"0,{row}" for row in rows)]))
    source = find(str(sweep))
    records = load(source.uri, source.experiment, [], parent=source.parent, shared=source.shared)
    assert set(records.runs["run_id"]) == {recorded.run_id(f"small_gru_{n}") for n in (0, 1)}


class Doorkeeper(BaseHTTPRequestHandler):
    """Lets nobody in, and remembers what it was told."""

    told: ClassVar[set[str | None]] = set()

    def do_GET(self) -> None:
        self.told.add(self.headers["Authorization"])
        self.send_error(401)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("named", ["by its folder", "by its address"])
def test_a_server_is_asked_with_the_password_and_the_report_tells_it_nobody(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """A sweep's folder has none: it comes with the environment."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Doorkeeper) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        Doorkeeper.told.clear()
        uri = f"http://me:sesame@127.0.0.1:{server.server_port}"
        sweep = str(tmp_path)
        if named == "by its folder":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            save(MlflowRunRef(redact(uri), EXPERIMENT, "", "a sweep"), tmp_path / "mlflow.json")
        assert report([sweep if named == "by its folder" else uri]) == 2
        records = load(uri, EXPERIMENT)
        server.shutdown()
    assert Doorkeeper.told == {"Basic bWU6c2VzYW1l"}
    line = capsys.readouterr().err
    assert "does not let us in (HTTP 401)" in line and "me:***@127.0.0.1" in records.source
    assert not any("sesame" in text for text in (line, records.source, *records.notes))


def test_a_status_that_there_is_not_is_one_line(capsys):
    assert report(["x.db", "--status", "finished,DONE"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("--status finished,DONE: DONE is none of FINISHED,")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "there is no such file or folder"),
        (".", "neither mlflow.json nor mlflow.db"),
        ("sqlite:///none.db", "there is no store at"),
        ("mailto:x", "choose from"),
    ],
)
def test_what_cannot_be_reported_is_one_line(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert report([source]) == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_the_reports_help_waits_for_nothing_heavy():
    code = (
        "import sys, llmdreamer.cli.report; heavy = {'pandas', 'matplotlib', 'mlflow', 'torch'};"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
