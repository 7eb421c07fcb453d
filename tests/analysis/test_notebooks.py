"""The notebooks and the report run on recorded runs, and without a store, without a traceback."""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import jupytext
import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from recorded import EXPERIMENT, Recorded
from refusals import assert_names

from llmdreamer.analysis.load import load
from llmdreamer.cli.report import find_runs
from llmdreamer.cli.report import main as report
from llmdreamer.tracking.record import MlflowRunRef, save
from llmdreamer.utils.redact import redact

ANALYSIS = Path(__file__).parents[2] / "analysis"
NOTEBOOKS = sorted(ANALYSIS.glob("*.py"))


def execute(paths: list[Path], folder: Path) -> str:
    """Return all outputs of the notebooks as text. One kernel runs them all, because starting one is slow."""
    notebook = nbformat.v4.new_notebook()
    for path in paths:
        notebook.cells += jupytext.read(path).cells
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return shown(notebook)


def shown(notebook: nbformat.NotebookNode) -> str:
    """Return the outputs of a notebook as text, with `data:image/png` for each figure."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output["output_type"] == "error"]
    data = [output.get("data", {}) for output in outputs]
    return "\n".join(
        "data:image/png" if "image/png" in each else each.get("text/html", "") for each in data
    )


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ANALYSIS.parent))
    for name in ("STORE", "STUDY", "STUDY_STORAGE", "RUN", "PUBLISHED"):
        monkeypatch.delenv(f"LLMDREAMER_{name}", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_notebooks_show_recorded_runs(recorded: Recorded, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LLMDREAMER_STORE", recorded.uri)
    monkeypatch.setenv("LLMDREAMER_EXPERIMENT", EXPERIMENT)
    text = execute(NOTEBOOKS, ANALYSIS)
    assert text.count("data:image/png") >= 7
    assert "no difference detectable at n = 3" in text
    assert "shown alone" in text
    assert "1 FAILED" in text


def test_notebooks_without_a_store_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PWD", str(tmp_path))
    monkeypatch.setenv("LLMDREAMER_PUBLISHED", str(ANALYSIS / "data" / "dmc_proprio.csv"))
    text = execute(NOTEBOOKS, tmp_path)
    assert text.count("there is no store at") >= 4
    assert "there is no study" in text
    assert text.count("data:image/png") == 1  # the published curves


def test_report_writes_a_page_and_its_figures(recorded: Recorded, tmp_path: Path, capsys):
    database = recorded.uri.removeprefix("sqlite:///")
    assert report([database, "--experiment", EXPERIMENT, "--out", str(tmp_path / "out")]) == 0
    page = Path(capsys.readouterr().out.strip())
    text = page.read_text()
    assert text.count("data:image/png") >= 5
    assert 'src="http' not in text and "<link" not in text and "<script" not in text
    assert (tmp_path / "out" / "curves-env-step.svg").exists()
    assert f"llmdreamer report {database} --experiment {EXPERIMENT}" in text
    assert "Commits of the code" in text


def test_report_of_a_sweep_counts_only_its_jobs(recorded: Recorded, tmp_path: Path, capsys):
    folder = next(Path(recorded.uri.removeprefix("sqlite:///")).parent.glob("2026*/*"))
    assert report([str(folder), "--out", str(tmp_path / "out")]) == 0
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    assert runs[["label", "env", "n", "seeds", "last env step"]].values.tolist() == [
        ["gru", "CartPole-v1", 3, "0, 1, 2", 800],
        ["scratch", "CartPole-v1", 3, "0, 1, 2", 800],
    ]


def test_cell_that_another_sweep_ran_counts_for_both(recorded: Recorded, tmp_path: Path):
    reference = json.loads((recorded.folders["small_gru_0"] / "mlflow.json").read_text())
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "mlflow.json").write_text(json.dumps(reference | {"run_id": "a sweep without jobs"}))
    rows = [str(recorded.folders[name]) for name in ("small_gru_0", "small_gru_1")]
    (sweep / "results.csv").write_text("\n".join(["seed,folder", *(f"0,{row}" for row in rows)]))
    source = find_runs(str(sweep))
    records = load(source.uri, source.experiment, [], parent=source.parent, shared=source.shared)
    assert set(records.runs["run_id"]) == {recorded.run_id(f"small_gru_{n}") for n in (0, 1)}


class DenyAccess(BaseHTTPRequestHandler):
    """Answers 401 to every request, and stores the Authorization headers."""

    headers_received: ClassVar[set[str | None]] = set()

    def do_GET(self) -> None:
        self.headers_received.add(self.headers["Authorization"])
        self.send_error(401)

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize("source", ["folder", "address"])
def test_report_sends_the_password_to_the_server_and_never_prints_it(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """A sweep's folder holds no password; it comes from the environment."""
    with ThreadingHTTPServer(("127.0.0.1", 0), DenyAccess) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        DenyAccess.headers_received.clear()
        uri = f"http://me:sesame@127.0.0.1:{server.server_port}"
        sweep = str(tmp_path)
        if source == "folder":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
            save(MlflowRunRef(redact(uri), EXPERIMENT, "", "a sweep"), tmp_path / "mlflow.json")
        assert report([sweep if source == "folder" else uri]) == 2
        records = load(uri, EXPERIMENT)
        server.shutdown()
    assert DenyAccess.headers_received == {"Basic bWU6c2VzYW1l"}
    line = capsys.readouterr().err
    assert_names(line, "HTTP 401", "MLFLOW_TRACKING_USERNAME")
    assert "me:***@127.0.0.1" in records.source
    assert not any("sesame" in text for text in (line, records.source, *records.notes))


def test_report_refuses_an_unknown_status_in_one_line(capsys):
    assert report(["x.db", "--status", "finished,DONE"]) == 2
    line = capsys.readouterr().err
    assert_names(line, "--status finished,DONE", "unknown DONE", "FINISHED")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("nowhere", "nowhere"),
        (".", "mlflow.db"),
        ("sqlite:///none.db", "none.db"),
        ("mailto:x", "tracking.uri=mailto:x"),
    ],
)
def test_report_refuses_a_source_that_cannot_be_read_in_one_line(
    source: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert report([source]) == 2
    line = capsys.readouterr().err
    assert_names(line, named)
    assert line.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_importing_the_report_command_imports_nothing_heavy():
    code = (
        "import sys, llmdreamer.cli.report; heavy = {'pandas', 'matplotlib', 'mlflow', 'torch'};"
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
