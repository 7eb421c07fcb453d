"""Runs that belong to one arm, the labels of arms, and the arms that can be compared."""

from collections.abc import Callable
from dataclasses import asdict

import pytest

from llmdreamer.analysis import compare
from llmdreamer.analysis.arms import differences, label_arms, one_knob_apart
from llmdreamer.analysis.load import Records, _frame
from llmdreamer.config import Config, arm
from llmdreamer.config.identity import digest
from llmdreamer.tracking.read import StoredRun
from llmdreamer.utils.flatten import flatten


def test_runs_that_differ_in_more_than_the_seed_are_different_arms(records: Records):
    labels = set(records.runs["label"])
    assert any("replay_ratio=1.0" in label for label in labels)
    for _, group in records.runs.groupby("label"):
        assert group["params.algo.optimizer.lr"].nunique() == 1
        assert group["replay_ratio"].nunique() == 1


def stored(number: int, config: Config) -> StoredRun:
    """Return a run as MLflow stores it."""
    params = {key: str(value) for key, value in flatten(asdict(config)).items()}
    tags = {"arm": arm(config), "env": config.env.id, "seed": str(config.seed)}
    return StoredRun(str(number), "run", "FINISHED", 0.0, 1.0, params, tags)


@pytest.mark.parametrize(
    ("options", "other_options"),
    [
        ([], ["seeds=3", "rerun=true", "seed=1"]),  # options that a sweep sets
        ([], ["compile=true", "threads=2", "trust=[torch_geometric]", "run_name=x"]),
        (["peft=false", "lora.r=8"], ["peft=false", "lora.r=16", "algo.optimizer.lora_lr=1e-3"]),
        (["peft=true"], ["peft=true", "algo.optimizer.backbone_lr=1e-3"]),
        (["backbone=gru"], ["backbone=gru", "lora.alpha=4"]),
    ],
)
def test_runs_of_one_cell_are_one_arm(
    compose: Callable[..., Config], options: list[str], other_options: list[str]
):
    """Options that do not distinguish the cells of a sweep do not distinguish arms either."""
    configs = [compose(*options), compose(*other_options)]
    assert digest(configs[0]) == digest(configs[1])
    frame = _frame([stored(n, config) for n, config in enumerate(configs)])
    assert list(frame["label"]) == [arm(configs[0])] * 2


def test_option_that_affects_training_distinguishes_arms(compose: Callable[..., Config]):
    configs = [compose("peft=true", f"lora.r={r}") for r in (8, 16)]
    frame = _frame([stored(n, config) for n, config in enumerate(configs)])
    assert list(frame["label"]) == ["random-frozen-lora r=8", "random-frozen-lora r=16"]


def test_evaluation_frequency_does_not_distinguish_arms(compose: Callable[..., Config]):
    configs = [compose("eval.every=100"), compose("eval.every=200", "eval.episodes=3")]
    frame = _frame([stored(n, config) for n, config in enumerate(configs)])
    assert list(frame["label"]) == ["scratch"] * 2


def test_differences_skip_options_without_effect_in_one_arm(compose: Callable[..., Config]):
    configs = [compose("peft=false", "lora.r=16"), compose("peft=true", "lora.r=8")]
    frame = _frame([stored(n, config) for n, config in enumerate(configs)])
    assert differences(frame, *frame["label"]) == []


def test_one_knob_apart_returns_pairs_that_differ_in_one_knob(arms: Callable[..., Records]):
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


def test_posterior_is_a_separate_knob(arms: Callable[..., Records]):
    """GPT-2 and DreamerV3's own agent differ in backbone and posterior: two knobs."""
    records = arms(
        ("scratch", {}, "E", 0, 1.0),
        ("gru", {"backbone": "gru"}, "E", 0, 1.0),
        ("reference", {"backbone": "gru", "posterior": "coupled"}, "E", 0, 1.0),
    )
    assert one_knob_apart(records.runs) == [
        ("backbone", "scratch", "gru"),
        ("posterior", "reference", "gru"),
    ]


def test_recipe_comes_first_in_labels_and_differences(compose: Callable[..., Config]):
    configs = [compose("backbone=gru", f"recipe={name}") for name in ("laptop", "seed")]
    frame = _frame([stored(n, config) for n, config in enumerate(configs)])
    assert list(frame["label"]) == ["gru recipe=laptop", "gru recipe=seed"]
    first, rest = differences(frame, *frame["label"])
    assert first == "recipe (laptop, seed)"
    assert rest.endswith("values of the recipe")


def test_arms_of_two_models_are_named_by_the_model_only(compose: Callable[..., Config]):
    configs = [compose(f"model={size}") for size in ("XS", "S")]
    frame = _frame([stored(n, config) for n, config in enumerate(configs)])
    frame["size"] = ["XS", "S"]
    assert list(label_arms(frame)) == ["scratch model=XS", "scratch model=S"]


def test_typed_value_names_an_arm_even_if_another_determines_it(arms: Callable[..., Records]):
    runs = arms(*[("scratch", {"size": size}, "E", 0, 1.0) for size in ("XS", "S")]).runs
    runs["params.algo.optimizer.lr"] = ["0.001", "0.000412345"]
    runs["params.algo.dense_units"] = ["128", "768"]
    runs["tags.overrides"] = ["threads=1", "model=S algo.optimizer.lr=0.000412345"]
    labels = ["scratch model=XS lr=0.001", "scratch model=S lr=0.000412"]
    assert list(label_arms(runs)) == labels


def test_numbers_in_labels_are_not_cut_if_they_would_be_equal(arms: Callable[..., Records]):
    runs = arms(*[("scratch", {}, "E", 0, 1.0)] * 2).runs
    runs["params.lr"] = ["0.00041231", "0.00041232"]
    assert list(label_arms(runs)) == ["scratch lr=0.00041231", "scratch lr=0.00041232"]


def test_differences_of_sizes_skip_the_widths(compose: Callable[..., Config]):
    configs = [compose("recipe=seed", f"model={size}") for size in ("XS", "S")]
    frame = _frame([stored(n, config) for n, config in enumerate(configs)])
    frame["size"] = ["XS", "S"]
    frame["label"] = ["scratch XS", "scratch S"]
    assert differences(frame, "scratch XS", "scratch S") == []


def test_posteriors_under_one_arm_tag_are_different_arms(arms: Callable[..., Records]):
    posteriors = ({}, {"posterior": "coupled"})
    runs = arms(*[("gru", {"backbone": "gru"} | knobs, "E", 0, 1.0) for knobs in posteriors]).runs
    assert list(label_arms(runs)) == ["gru posterior=decoupled", "gru posterior=coupled"]


def test_differences_name_other_options(arms: Callable[..., Records]):
    runs = arms(("a", {}, "E", 0, 1.0), ("b", {"peft": "true"}, "E", 0, 1.0)).runs
    runs["params.algo.optimizer.lr"] = ["0.001", "0.0004"]
    runs["params.seed"] = ["0", "1"]
    assert differences(runs, "a", "b") == ["algo.optimizer.lr (0.001, 0.0004)"]


def test_long_label_becomes_a_number_that_the_overview_explains(
    arms: Callable[..., Records],
):
    records = arms(*[("scratch", {}, "E", s, 1.0) for s in range(3)])
    name = "option_" * 9
    records.runs[f"params.algo.{name}"] = ["1", "2", "1"]
    records.runs["label"] = label_arms(records.runs)
    assert list(records.runs["label"]) == ["scratch [1]", "scratch [2]", "scratch [1]"]
    (table,) = compare.overview(records).tables
    assert list(table["seeds"]) == ["0, 2", "1"]
    assert table["description"][1] == f"scratch {name}=2"


def test_long_label_is_cut_to_the_options_that_tell_runs_apart(arms: Callable[..., Records]):
    runs = arms(*[("scratch", {}, "E", s, 1.0) for s in range(2)]).runs
    for n in range(5):
        runs[f"params.algo.one_of_many_{n}"] = ["1", "2"]
    runs["tags.overrides"] = " ".join(f"algo.one_of_many_{n}=1" for n in range(5))
    assert list(label_arms(runs)) == ["scratch one_of_many_0=1", "scratch one_of_many_0=2"]


def test_run_that_lacks_a_parameter_is_labeled_unset():
    """A missing parameter must not remove the run from every table."""
    tags = {"arm": "scratch", "env": "E", "seed": "0"}
    runs = [{"algo.lr": "1"}, {"algo.lr": "1", "algo.new": "2"}]
    frame = _frame(
        [
            StoredRun(str(n), "r", "FINISHED", 0.0, 1.0, params, tags)
            for n, params in enumerate(runs)
        ]
    )
    assert list(frame["label"]) == ["scratch new=unset", "scratch new=2"]


def test_many_differences_are_listed_up_to_a_limit(arms: Callable[..., Records]):
    runs = arms(("a", {}, "E", 0, 1.0), ("b", {"peft": "true"}, "E", 0, 1.0)).runs
    for n in range(10):
        runs[f"params.p{n}"] = ["1", "2"]
    listed = differences(runs, "a", "b")
    assert listed[0] == "p0 (1, 2)" and listed[8:] == ["2 other parameters"]
