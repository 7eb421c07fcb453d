"""The tags of a new experiment: its kind, its description, and a view with the columns to read first."""

from __future__ import annotations

import base64
import json
import time
import zlib

NOTE_TAG = "mlflow.note.content"
"""Tag whose Markdown MLflow shows as the description of a run or an experiment."""
KIND_TAG, MODEL_TRAINING = "mlflow.experimentKind", "custom_model_development"
"""Tag that chooses the pages of an experiment, and the value for runs, charts and models.

MLflow 3.17 ignores it: its pages follow the switch at their top left, which a new browser finds at "GenAI".
"""
VIEW_TAG = "mlflow.sharedViewState.results"
"""Tag of a saved view of the table of runs. MLflow's pages list it under "Views"."""
VIEW_NAME = "Results"
# Columns after the name and the start, with widths in pixels for a page of 1440 pixels. By default, 14
# characters of a name are visible.
COLUMNS = {
    "metrics.`return`": 80,
    "metrics.`return_best`": 105,
    "metrics.`best_value`": 95,
    "metrics.`area_under_curve`": 140,
    "metrics.`env_step`": 85,
    "metrics.`minutes`": 80,
    "tags.`pruned`": 140,
}
_NAME = {"attributes.`Run Name`": 270}
# The first line is what MLflow shows of it before it is opened.
NOTE = """\
Views > Results has the columns to read first. The + in front of a sweep opens its runs.

| metric | meaning |
|---|---|
| `return` | mean of the newest evaluation |
| `return_best` | mean of the best policy, on other episodes than those that chose it |
| `area_under_curve` | mean of the evaluations over environment steps |
| `best_value` | best value of the objective, of a sweep |

`docs/metrics.md` explains the others, and the tags. Commands:

    python -m llmdreamer status            # sweeps and their progress
    python -m llmdreamer report STORE      # arms with confidence intervals, from this store
    python -m llmdreamer sync FOLDER       # upload what this store lacks of a run
"""


def experiment_tags() -> dict[str, str]:
    """Return the tags of a new experiment."""
    return {KIND_TAG: MODEL_TRAINING, NOTE_TAG: NOTE, VIEW_TAG: _saved_view()}


def _saved_view() -> str:
    """Return a view as the pages of MLflow 3.17 save it; older ones ignore it."""
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [*COLUMNS],
        "columnOrder": [*_NAME, "runDateAndNestInfo", *COLUMNS, "duration"],
        "columnWidths": _NAME | COLUMNS,
        # In charts, the metrics without a slash would come last.
        "compareRunCharts": [],
        "compareRunSections": [
            {"uuid": "headline", "name": "Model metrics", "display": True, "isReordered": False}
        ],
        "isAccordionReordered": True,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
    }
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    now = int(time.time() * 1000)
    view = {"name": VIEW_NAME, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"}
    return json.dumps(view)
