"""Fuzz the settings of training: a run either trains or ends with a one-line error.

`LLMDREAMER_EXAMPLES=500 pytest -n0 tests/faults/test_anything_trains.py` tries more, at random.
"""

import os
import shutil

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdreamer.config import leaves

RANDOM_EXAMPLES = int(os.environ.get("LLMDREAMER_EXAMPLES", "0"))
PREFIXES = ("algo.", "replay.", "eval.", "checkpoint.", "env.", "backbone.width")
# These only cost memory or time by their size, or name files outside the run's folder.
EXCLUDED_SUFFIXES = ("compile", "kwargs", "timeout", "options")
SETTINGS = sorted(
    name for name in leaves() if name.startswith(PREFIXES) and not name.endswith(EXCLUDED_SUFFIXES)
)
VALUES = [
    "-1",
    "0",
    "1",
    "2",
    "3",
    "5",
    "16",
    "0.5",
    "0.999",
    "1e-30",
    "1e30",
    "nan",
    "true",
    "null",
]
random_overrides = st.builds("{}={}".format, st.sampled_from(SETTINGS), st.sampled_from(VALUES))


@settings(
    max_examples=RANDOM_EXAMPLES or 15,
    deadline=None,
    derandomize=not RANDOM_EXAMPLES,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(random_overrides, min_size=1, max_size=3))
def test_run_with_random_settings_trains_or_fails_in_one_line(command, tmp_path, overrides):
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
    code, _, err = command("run_name=run", *overrides)
    assert code in (0, 1, 2, 3) and "Traceback" not in err, (overrides, err)
    if code:
        assert err.count("\n") >= 1 and len(err.splitlines()[-1]) < 500, (overrides, err)
    else:
        assert (tmp_path / "outputs" / "run" / "returns.png").exists(), overrides
