"""The search space of a study, and its signature: arm, fixed values, and keys inside mappings."""

from contextlib import closing

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from refusals import refused

from llmdreamer.sweep.studies.distributions import search_space
from llmdreamer.sweep.studies.study import Study
from llmdreamer.utils.errors import ConfigError

STUDY = ["hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=4", "model=XS", "env=cartpole"]
LR = "algo.optimizer.lr=1e-3,1e-4"
ARMS = ["hydra.sweeper.study_per_arm=true", "+hydra.sweeper.arms.a='peft=false'"]
ARM_B = "+hydra.sweeper.arms.b='peft=true lora.r=8'"


@pytest.fixture
def open_studies(make_plan):
    """Return a function that opens the studies of a command, as a driver does, by arm."""

    def open_all(*overrides):
        # Close the generator also after an error: Hydra can be initialized only once.
        with closing(make_plan(*STUDY, LR, *overrides)) as plans:
            plan = next(plans)
            names = {arm: f"{plan.name}-{arm}" if arm else None for arm in plan.arms}
            studies = {arm: Study(plan, arm, name) for arm, name in names.items()}
        for study in studies.values():
            study.close()
        return studies

    return open_all


def test_study_of_a_changed_arm_is_refused(open_studies):
    open_studies(*ARMS, ARM_B)
    open_studies(*ARMS, ARM_B)
    with pytest.raises(ConfigError, match=r"s-b .*lora\.r 8, .*16"):
        open_studies(*ARMS, ARM_B.replace("8", "16"))


def test_study_of_an_arm_resumes_without_the_other_arms(open_studies):
    open_studies(*ARMS, ARM_B)
    assert [*open_studies(*ARMS, ARM_B, "~hydra.sweeper.arms.a")] == ["b"]


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ([], ["+env.kwargs.render_mode=rgb_array"], "env.kwargs.render_mode unset, not rgb_"),
        (["+env.kwargs.a=1"], ["+env.kwargs.b=1"], "env.kwargs.a 1, not unset"),
        ([], ["+env.vector_scale.x=[1]"], r"env.vector_scale.x unset, not \[1.0\]"),
        ([], ["+env.kwargs.a=null"], "env.kwargs.a unset, not null"),
        ([], ["algo.horizon=5"], "algo.horizon 15, not 5"),
        ([], ["peft=true"], "algo.world_model.hf_model.peft false, not true"),
        ([], ["algo.agent=lab.Agent", "trust=[lab]"], "algo.agent unset, not lab.Agent"),
        (
            ["backbone=hf", "backbone.model_type=olmo2", "+backbone.config.hidden_size=64"],
            ["backbone=hf", "backbone.model_type=olmo2"],
            "backbone.config.hidden_size 64, not unset",
        ),
    ],
)
def test_study_is_refused_when_a_fixed_value_changes(open_studies, before, after, change):
    open_studies(*before)
    with pytest.raises(ConfigError, match=f"study s .*{change}"):
        open_studies(*after)
    open_studies(*before)


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ("interval(1e-4,inf)", ["finite"]),
        ("interval(-inf,1)", ["finite"]),
        ("interval(nan,1)", ["finite"]),
        ("interval(0,1e400)", ["finite"]),
        ("interval(1,0)", ["1", "0"]),
        ("interval(1,1)", ["1"]),
        ("int(interval(1.2,1.8))", ["1"]),
        ("tag(log,interval(0,1))", ["logarithmic", "0"]),
        ("tag(log,interval(-1.0,1))", ["logarithmic", "-1"]),
        ("tag(log,range(0,5))", ["logarithmic", "0"]),
        ("tag(log,range(1,9,2))", ["step 1"]),
        ("tag(log,range(0.1,0.9,0.1))", ["step 1"]),
        ("tag(lgo,interval(1,2))", ["lgo"]),
        ("range(1,inf)", []),
        ("range(1,5,nan)", []),
        ("range(3,1)", []),
        ("range(0,1,0)", []),
        ("shuffle(1,2,3)", ["shuffle"]),
        ("shuffle(range(1,4))", ["shuffle"]),
        ("1,1", ["1 and 1"]),
        ("1,true", ["1 and true"]),
        ("0.0,0", ["0.0 and 0"]),
        ("a,b,a", ["a and a"]),
        ("[1],[1]", ["[1] and [1]"]),
        ("nan,1", ["nan"]),
    ],
)
def test_values_that_are_no_space_are_refused(values, parts):
    override = OverridesParser.create().parse_override(f"algo.gamma={values}")
    with refused(ConfigError, f"algo.gamma={values}: ", *parts):
        search_space({"algo.gamma": override})


@pytest.mark.parametrize(
    ("values", "distribution"),
    [
        ("tag(log,range(2,9))", IntDistribution(2, 8, log=True)),
        ("tag(log,int(interval(1,9)))", IntDistribution(1, 9, log=True)),
        ("tag(log,interval(1,9))", FloatDistribution(1.0, 9.0, log=True)),
        ("null,2", CategoricalDistribution(["null", 2])),
        ("range(1,2)", IntDistribution(1, 1)),
    ],
)
def test_values_are_the_distribution_that_they_say(values, distribution):
    override = OverridesParser.create().parse_override(f"algo.gamma={values}")
    assert search_space({"algo.gamma": override}) == {"algo.gamma": distribution}


def test_glob_is_the_list_of_the_options_of_a_group(make_plan):
    for pattern, sizes in {"glob(*)": ["L", "M", "S", "XS"], "glob([X*,M])": ["M", "XS"]}.items():
        with closing(make_plan(f"model={pattern}")) as plans:
            assert [*next(plans).swept["model"].sweep_string_iterator()] == sizes


@pytest.mark.parametrize("override", ["model=glob(Q*)", "env.id=glob(*)", "algo.horizon=glob(*)"])
def test_glob_without_options_is_refused(make_plan, override):
    with refused(ConfigError, override, override.partition("=")[0]):
        next(make_plan(override))


def test_study_refuses_other_constraints(open_studies):
    open_studies("hydra.sweeper.constraints={flops:1e9}")
    with pytest.raises(ConfigError, match=r"constraints\.flops"):
        open_studies("hydra.sweeper.constraints={flops:2e9}")
