"""Whatever numbers the knobs of training are given, a run trains, or ends in one line that says why.

`LLMDREAMER_EXAMPLES=500 pytest -n0 tests/faults/test_anything_trains.py` looks further, at random.
"""

import os
import shutil

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdreamer.config import leaves

FURTHER = int(os.environ.get("LLMDREAMER_EXAMPLES", "0"))
PARTS = ("algo.", "replay.", "eval.", "checkpoint.", "env.", "backbone.width")
# What takes memory or time for no other reason than its size, and files outside of the run's folder.
LEFT_OUT = ("compile", "kwargs", "timeout", "options")
KNOBS = sorted(name for name in leaves() if name.startswith(PARTS) and not name.endswith(LEFT_OUT))
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
typed = st.builds("{}={}".format, st.sampled_from(KNOBS), st.sampled_from(VALUES))


@settings(
    max_examples=FURTHER or 15,
    deadline=None,
    derandomize=not FURTHER,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(typed, min_size=1, max_size=3))
def test_a_run_of_any_numbers_trains_or_says_in_one_line_why_not(command, tmp_path, overrides):
    shutil.rmtree(tmp_path / "outputs", ignore_errors=True)
    code, _, err = command("run_name=run", *overrides)
    assert code in (0, 1, 2, 3) and "Traceback" not in err, (overrides, err)
    if code:
        assert err.count("\n") >= 1 and len(err.splitlines()[-1]) < 500, (overrides, err)
    else:
        assert (tmp_path / "outputs" / "run" / "returns.png").exists(), overrides
