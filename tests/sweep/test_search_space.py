"""The signature of a study: its arm, the fixed values, and the keys inside mappings."""

from contextlib import closing

import pytest

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
