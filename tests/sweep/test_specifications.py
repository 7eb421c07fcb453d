"""The files in sweeps/ compose, and their first and last runs pass every check."""

import os
from pathlib import Path

import pytest

from llmdreamer import config
from llmdreamer.sweep.grid import combinations
from llmdreamer.sweep.studies.distributions import search_space
from llmdreamer.sweep.studies.samplers import check_sampler, make_pruner
from llmdreamer.sweep.studies.search_space import (
    check_study_settings,
    first_value,
    to_overrides,
    trial_budget,
)
from llmdreamer.utils.errors import ConfigError

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
SPECS = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))


def test_shipped_specifications_exist():
    assert {
        "ablation",
        "question",
        "replay_ratio",
        "lora",
        "backbone_lr",
        "size_cost",
        "smoke",
    } <= {*SPECS}


@pytest.mark.parametrize("name", SPECS)
def test_specification_that_compares_sizes_fixes_the_recipe(make_plan, name):
    for plan in make_plan(f"sweeps={name}"):
        if "model" in plan.swept:
            sizes = plan.swept["model"].sweep_string_iterator()
            assert len({plan.compose([*plan.fixed, f"model={size}"]).recipe for size in sizes}) == 1


def test_some_specification_compares_sizes(make_plan):
    assert any("model" in plan.swept for name in SPECS for plan in make_plan(f"sweeps={name}"))


@pytest.mark.parametrize("name", SPECS)
def test_specification_passes_all_checks(make_plan, name):
    for plan in make_plan(f"sweeps={name}"):
        if plan.settings.n_trials is None:
            cells = list(combinations(plan))
            points = [
                [*cell.values, *cell.arm_overrides, f"seed={cell.seed}"]
                for cell in (cells[0], cells[-1])
            ]
        else:
            space = search_space(plan.swept)
            check_study_settings(plan)
            make_pruner(plan)
            check_sampler(plan, space)
            assert trial_budget(plan, space) == plan.settings.n_trials
            point = {key: first_value(values) for key, values in space.items()}
            points = [[*to_overrides(point), *arm] for arm in plan.arms.values()]
        for overrides in points:
            plan.compose([*plan.fixed, *overrides])


@pytest.mark.parametrize(("typed", "cells"), [([], 18), (["seeds=5"], 30), (["seed=7"], 18)])
def test_ablation_crosses_arms_with_seeds(make_plan, typed, cells):
    for plan in make_plan("sweeps=ablation", *typed):
        arms = {config.arm(plan.compose([*plan.fixed, *arm])) for arm in plan.arms.values()}
        assert arms == {
            "reference", "gru", "scratch", "pretrained-full", "pretrained-lora", "random-frozen-lora",
        }  # fmt: skip
        assert len(list(combinations(plan))) == cells


def test_ablation_uses_a_local_checkpoint_in_language_model_arms(make_plan, tmp_path):
    for plan in make_plan("sweeps=ablation", f"backbone.path={tmp_path}"):
        configs = [plan.compose([*plan.fixed, *arm]) for arm in plan.arms.values()]
        assert [config.backbone.path for config in configs] == [None, None, *[str(tmp_path)] * 4]


def test_typed_overrides_take_precedence_over_the_specification(make_plan):
    typed = ["sweeps=lora", "lora.r=4", "model=XS", "hydra.sweeper.n_trials=3"]
    typed.append("algo.optimizer.lora_lr=1e-4,1e-3")
    for plan in make_plan(*typed):
        assert set(plan.swept) == {"lora.alpha", "lora.dropout", "algo.optimizer.lora_lr"}
        assert search_space(plan.swept)["algo.optimizer.lora_lr"].choices == (1e-4, 1e-3)
        assert (plan.base.lora.r, plan.base.size, plan.settings.n_trials) == (4, "XS", 3)


def test_values_that_conflict_only_with_a_default_are_accepted(make_plan):
    # At the default XS, which no cell uses, a sequence is longer than all 24 steps.
    for plan in make_plan(
        "model=S,M", "peft=true,false", "algo.total_steps=24", "algo.learning_starts=16"
    ):
        configs = [plan.compose([*plan.fixed, *cell.values]) for cell in combinations(plan)]
        assert [config.size for config in configs] == ["S", "S", "M", "M"]
        assert plan.base.algo.total_steps == 24
    with pytest.raises(ConfigError, match=r"algo.total_steps=4 "):
        [*make_plan("model=S,M", "algo.total_steps=4", "algo.learning_starts=1")]


def test_same_command_or_one_with_more_values_finds_the_same_folder(make_plan):
    def folder(*typed):
        return next(iter([plan.folder.name for plan in make_plan(*typed)]))

    assert folder("model=S,M", "seed=0") == folder("model=S,M,L", "seed=0")
    assert folder("model=S,M") == folder("model=S,M", "rerun=true", "threads=2")
    names = {folder("model=S,M"), folder("model=S,M", "seed=1"), folder("lora.r=1,2")}
    assert len(names) == 3
    assert folder("sweeps=lora", "model=XS") == "lora"


def test_sampler_and_pruner_are_known_by_their_usual_spellings(make_plan):
    (plan,) = make_plan("sweeps=lora", "hydra.sweeper.sampler=NSGA-II", "hydra.sweeper.pruner=ASHA")
    assert (plan.settings.sampler, plan.settings.pruner) == ("nsgaii", "successive_halving")


def test_arms_of_the_question_share_one_architecture(make_plan):
    (plan,) = make_plan("sweeps=question")
    arms = {
        arm.arm: plan.compose([*plan.fixed, *arm.values, *arm.arm_overrides])
        for arm in combinations(plan)
    }
    scratch = arms["scratch"].backbone
    assert scratch.model_type == "llama" and scratch.path is None
    assert arms["pretrained"].backbone == arms["pretrained-lora"].backbone
    assert [name for name, arm in arms.items() if arm.algo.world_model.hf_model.peft] == [
        "pretrained-lora"
    ]
