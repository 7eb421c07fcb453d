"""The runs of a mixed store that count: smoke tests do not, the longest and the newest run do."""

import pandas as pd

from llmdreamer.analysis.selection import select


def runs(*rows: tuple[str, str, str | None, int, int]) -> pd.DataFrame:
    """Create runs of one environment, oldest first, from (name, status, sweep, steps, updates)."""
    frame = pd.DataFrame(rows, columns=["name", "status", "sweep", "steps", "updates"])
    return frame.assign(env="E", started=range(len(rows)), warmup="100")


def chosen(*rows: tuple[str, str, str | None, int, int]) -> list[str]:
    frame = runs(*rows)
    return list(frame["name"][select(frame)[0]])


SMOKE = [(f"smoke {n}", "FINISHED", "smoke", 128, 30) for n in range(3)]
DONE = ("done", "FINISHED", None, 4500, 2000)
ALONE = ("alone", "FINISHED", None, 200, 20)


def test_smoke_tests_beside_a_trained_run_are_left_out_with_the_rule():
    chosen_runs, (note,) = select(runs(*SMOKE, DONE, ALONE))
    assert chosen_runs == [False, False, False, True, False]
    assert note == (
        "4 smoke tests are left out (3 of the sweep smoke, 1 outside of sweeps; at most 200 env steps): "
        "they made no more updates than the warmup of their learning rate takes."
    )


def test_smoke_tests_alone_count():
    assert chosen(*SMOKE) == ["smoke 0", "smoke 1", "smoke 2"]


def test_smoke_tests_of_another_environment_count():
    frame = runs(DONE, *SMOKE)
    frame["env"] = ["E", "F", "F", "F"]
    assert select(frame) == ([True] * 4, [])


def test_newest_unfinished_run_counts_with_a_note():
    killed = ("cut short", "KILLED", None, 700, 250)
    chosen_runs, (note,) = select(runs(("older", *killed[1:]), DONE, killed))
    assert chosen_runs == [False, True, True]
    assert note.startswith("cut short counts although it has not finished (KILLED at env step 700)")


def test_longest_unfinished_run_counts():
    assert chosen(("long", "KILLED", None, 9000, 4000), DONE) == ["long", "done"]


def test_unfinished_run_older_and_shorter_than_a_finished_one_is_left_out():
    assert chosen(("failed", "FAILED", None, 700, 250), DONE) == ["done"]


def test_newest_run_that_has_not_trained_yet_does_not_count():
    assert chosen(DONE, ("starting", "RUNNING", None, 50, 0)) == ["done"]


def test_pruned_run_does_not_count():
    assert chosen(DONE, ("pruned", "PRUNED", "study", 9000, 4000)) == ["done"]


def test_run_without_a_known_warmup_is_no_smoke_test():
    frame = runs(DONE, ALONE)
    frame["warmup"] = ["100", None]
    assert select(frame)[0] == [True, True]
