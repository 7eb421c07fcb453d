"""The notebooks in the repository: text and outputs in step, small, and from records beside them."""

import json
from itertools import pairwise
from pathlib import Path

import jupytext
import pytest
from recorded import Recorded

from llmdreamer.analysis import notebook, single_run
from llmdreamer.analysis.load import RETURN, Records
from llmdreamer.analysis.section import Section

ROOT = Path(__file__).parents[2]
TEXTS = sorted((ROOT / "analysis").glob("*.py"))
MOST_BYTES = 500_000
UPDATE = "write it again as analysis/README.md says"


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_notebook_has_the_cells_of_its_text(path: Path):
    pair = [jupytext.read(each) for each in (path.with_suffix(".ipynb"), path)]
    cells = [[(cell.cell_type, cell.source) for cell in each.cells] for each in pair]
    assert cells[0] == cells[1], UPDATE
    assert {each.metadata.jupytext.formats for each in pair} == {"ipynb,py:percent"}


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.stem)
def test_notebook_has_outputs_without_errors_or_paths_of_a_machine(path: Path):
    file = path.with_suffix(".ipynb")
    cells = [cell for cell in json.loads(file.read_text())["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert all(cell["execution_count"] for cell in cells), UPDATE
    assert any("image/png" in output["data"] for output in outputs), UPDATE
    assert {output["output_type"] for output in outputs} <= {"display_data", "execute_result"}
    texts = [
        "".join(text)
        for output in outputs
        for kind, text in output["data"].items()
        if kind != "image/png"
    ]
    roots = ("/root", "/home", "/tmp", "/work", "/Users", "C:\\", str(ROOT))
    assert not [text for text in texts if any(root in text for root in roots)]
    assert file.stat().st_size < MOST_BYTES


def test_notebook_cells_have_at_most_five_lines():
    for path in TEXTS:
        for cell in jupytext.read(path).cells:
            if cell.cell_type == "markdown":
                continue
            lines = [line for line in cell.source.splitlines() if "import" not in line and line]
            assert len(lines) <= 5, (path.name, cell.source)


def test_every_figure_is_explained_by_the_cell_above_it():
    for path in TEXTS:
        cells = jupytext.read(path).cells
        for above, cell in pairwise(cells):
            if cell.source.splitlines()[-1].startswith(("compare.", "published.", "pick(")):
                explained = (
                    above.cell_type == "markdown" or 'pick(sections, "Study")' in cell.source
                )
                assert explained, (path.name, cell.source)


def test_store_is_that_of_the_folder_where_jupyter_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    started = tmp_path / "started"
    started.mkdir()
    assert notebook.find_store({}) is None
    (tmp_path / "mlflow.db").touch()
    assert notebook.find_store({"PWD": str(started)}) == f"sqlite:///{tmp_path}/mlflow.db"
    (started / "mlflow.db").touch()
    assert notebook.find_store({"PWD": str(started)}) == f"sqlite:///{started}/mlflow.db"
    named = {"MLFLOW_TRACKING_URI": "http://b", "PWD": str(started)}
    assert notebook.find_store(named) == "http://b"
    assert notebook.find_store(named | {"LLMDREAMER_STORE": "http://a"}) == "http://a"


def test_results_page_is_read_with_its_curves_and_knobs(tmp_path: Path):
    (tmp_path / "curves.csv").write_text("label,seed,env_step,return\nc,0,10,1.5\nc,0,20,2.5\n")
    (tmp_path / "runs.csv").write_text(
        "label,seed,seconds,commit,overrides\nc,0,60,abc,threads=1 backbone=gru posterior=coupled\n"
    )
    records = notebook.read_results(tmp_path, "E")
    assert records.metric(RETURN)[["label", "seed", "env_step", "value"]].values.tolist() == [
        ["c", 0, 10, 1.5],
        ["c", 0, 20, 2.5],
    ]
    (run,) = records.runs.to_dict("records")
    assert (run["backbone"], run["posterior"], run["size"], run["env"]) == (
        "gru",
        "coupled",
        "XS",
        "E",
    )


def test_run_read_from_its_folder_equals_the_same_run_in_a_store(
    recorded: Recorded, records: Records
):
    folder = recorded.folders["small_gru_0"]
    own = notebook.read_run(folder)
    stored = records.curves[records.curves["run_id"] == recorded.run_id("small_gru_0")]
    key = ["key", "env_step"]
    columns = [*key, "value", "seconds"]
    frames = [
        frame[columns].astype({"key": str}).sort_values(key).reset_index(drop=True)
        for frame in (own.curves, stored)
    ]
    assert frames[0][[*key, "value"]].equals(frames[1][[*key, "value"]])
    assert frames[0]["seconds"].to_numpy() == pytest.approx(
        frames[1]["seconds"].to_numpy(), abs=0.01
    )
    assert single_run.select_run(own, None) == "small_gru_0"


def test_missing_records_are_a_note(tmp_path: Path):
    for records in (notebook.read_run(tmp_path), notebook.read_results(tmp_path, "E")):
        assert records.runs.empty and len(records.notes) == 1
        assert single_run.select_run(records, None) is None


def test_missing_section_says_so():
    present = Section("A", ["text"])
    assert notebook.pick([present], "A") is present
    assert notebook.pick([present], "B").text
