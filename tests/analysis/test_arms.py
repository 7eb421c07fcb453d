"""What runs are samples of one arm, what it is called, and which arms can be compared."""

from collections.abc import Callable

from llmdreamer.analysis import compare
from llmdreamer.analysis.cells import differences, label_arms, one_knob_apart
from llmdreamer.analysis.load import Records, _frame
from llmdreamer.tracking.read import StoredRun


def test_runs_that_differ_in_more_than_the_seed_are_never_one_arm(records: Records):
    labels = set(records.runs["label"])
    assert any("replay_ratio=1.0" in label for label in labels)
    for _, group in records.runs.groupby("label"):
        assert group["params.algo.optimizer.lr"].nunique() == 1
        assert group["replay_ratio"].nunique() == 1


def test_only_arms_one_knob_apart_are_compared(arms: Callable[..., Records]):
    records = arms(
        ("scratch", {}, "E", 0, 1.0),
        ("pretrained-lora", {"pretrained": "true", "peft": "true"}, "E", 0, 1.0),
        ("random-frozen-lora", {"peft": "true"}, "E", 0, 1.0),
        ("scratch M", {"size": "M"}, "E", 0, 1.0),
    )
    assert one_knob_apart(records.runs) == [
        ("size", "scratch M", "scratch"),
        ("pretrained", "pretrained-lora", "random-frozen-lora"),
        ("peft", "random-frozen-lora", "scratch"),
    ]


def test_the_posterior_is_a_knob_of_its_own(arms: Callable[..., Records]):
    """GPT-2 against DreamerV3's own agent changes the memory and the posterior: no single knob."""
    records = arms(
        ("scratch", {}, "E", 0, 1.0),
        ("gru", {"backbone": "gru"}, "E", 0, 1.0),
        ("reference", {"backbone": "gru", "posterior": "coupled"}, "E", 0, 1.0),
    )
    assert one_knob_apart(records.runs) == [
        ("backbone", "scratch", "gru"),
        ("posterior", "reference", "gru"),
    ]


def test_posteriors_are_never_averaged_even_under_one_tag(arms: Callable[..., Records]):
    posteriors = ({}, {"posterior": "coupled"})
    runs = arms(*[("gru", {"backbone": "gru"} | knobs, "E", 0, 1.0) for knobs in posteriors]).runs
    assert list(label_arms(runs)) == ["gru posterior=decoupled", "gru posterior=coupled"]


def test_what_else_differs_is_named(arms: Callable[..., Records]):
    runs = arms(("a", {}, "E", 0, 1.0), ("b", {"peft": "true"}, "E", 0, 1.0)).runs
    runs["params.algo.optimizer.lr"] = ["0.001", "0.0004"]
    runs["params.seed"] = ["0", "1"]
    assert differences(runs, "a", "b") == ["algo.optimizer.lr (0.001, 0.0004)"]


def test_a_label_that_no_picture_holds_is_a_number_that_the_first_table_explains(
    arms: Callable[..., Records],
):
    records = arms(*[("scratch", {}, "E", s, 1.0) for s in range(3)])
    for n in range(5):
        records.runs[f"params.algo.one_of_many_{n}"] = ["1", "2", "1"]
    records.runs["label"] = label_arms(records.runs)
    assert list(records.runs["label"]) == ["scratch [1]", "scratch [2]", "scratch [1]"]
    (table,) = compare.overview(records).tables
    assert list(table["seeds"]) == ["0, 2", "1"]
    assert table["which is"][1].startswith("scratch one_of_many_0=2 one_of_many_1=2")


def test_a_run_from_before_a_choice_is_of_the_arm_that_does_as_was_done_then():
    tags = {"arm": "scratch", "env": "E", "seed": "0"}
    lives = [{}, {"eval.greedy": "True"}, {"eval.greedy": "False"}]
    frame = _frame(
        [
            StoredRun(str(n), "r", "FINISHED", 0.0, 1.0, params, tags)
            for n, params in enumerate(lives)
        ]
    )
    assert list(frame["label"]) == [*["scratch greedy=True"] * 2, "scratch greedy=False"]


def test_a_run_without_a_parameter_that_others_have_is_an_arm_too():
    """A version before had no such parameter; its runs must not fall out of every table."""
    tags = {"arm": "scratch", "env": "E", "seed": "0"}
    lives = [{"algo.lr": "1"}, {"algo.lr": "1", "algo.new": "2"}]
    frame = _frame(
        [
            StoredRun(str(n), "r", "FINISHED", 0.0, 1.0, params, tags)
            for n, params in enumerate(lives)
        ]
    )
    assert list(frame["label"]) == ["scratch new=unset", "scratch new=2"]


def test_of_many_differences_some_are_named(arms: Callable[..., Records]):
    runs = arms(("a", {}, "E", 0, 1.0), ("b", {"peft": "true"}, "E", 0, 1.0)).runs
    for n in range(10):
        runs[f"params.p{n}"] = ["1", "2"]
    told = differences(runs, "a", "b")
    assert told[0] == "p0 (1, 2)" and told[8:] == ["2 other parameters"]
