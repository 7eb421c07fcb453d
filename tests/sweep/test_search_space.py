"""What a study is known by: its own arm, every value that is fixed, and what its mappings hold."""

from contextlib import closing

import pytest

from llmdreamer.config.identity import identity
from llmdreamer.sweep.studies.results import SIGNED
from llmdreamer.sweep.studies.study import Study
from llmdreamer.utils.errors import ConfigError

STUDY = ["hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=4", "model=XS", "env=cartpole"]
LR = "algo.optimizer.lr=1e-3,1e-4"
ARMS = ["hydra.sweeper.study_per_arm=true", "+hydra.sweeper.arms.a='peft=false'"]
B = "+hydra.sweeper.arms.b='peft=true lora.r=8'"


@pytest.fixture
def studies(make_plan):
    """The studies of a command, opened as a driver opens them; by arm."""

    def opened(*overrides):
        with closing(
            make_plan(*STUDY, LR, *overrides)
        ) as plans:  # Hydra is there once, also after a refusal
            plan = next(plans)
            names = {arm: f"{plan.name}-{arm}" if arm else None for arm in plan.arms}
            found = {arm: Study(plan, arm, name) for arm, name in names.items()}
        for study in found.values():
            study.close()
        return found

    return opened


def test_an_arm_that_has_become_another_is_refused(studies):
    studies(*ARMS, B)
    studies(*ARMS, B)
    with pytest.raises(ConfigError, match=r"study s-b was made with lora\.r 8, not 16"):
        studies(*ARMS, B.replace("8", "16"))


def test_the_study_of_an_arm_goes_on_without_the_other_arms(studies):
    studies(*ARMS, B)
    assert [*studies(*ARMS, B, "~hydra.sweeper.arms.a")] == ["b"]


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ([], ["+env.kwargs.render_mode=rgb_array"], "env.kwargs.render_mode nothing, not rgb_"),
        (["+env.kwargs.a=1"], ["+env.kwargs.b=1"], "env.kwargs.a 1, not nothing"),
        ([], ["+env.vector_scale.x=[1]"], r"env.vector_scale.x nothing, not \[1.0\]"),
        ([], ["+env.kwargs.a=null"], "env.kwargs.a nothing, not null"),
        ([], ["eval.greedy=false"], "eval.greedy true, not false"),
        ([], ["algo.agent=lab.Agent", "trust=[lab]"], "algo.agent null, not lab.Agent"),
        (
            ["backbone=hf", "backbone.model_type=olmo2", "+backbone.config.hidden_size=64"],
            ["backbone=hf", "backbone.model_type=olmo2"],
            "backbone.config.hidden_size 64, not nothing",
        ),
    ],
)
def test_what_one_of_two_commands_says_tells_their_studies_apart(studies, before, after, line):
    studies(*before)
    with pytest.raises(ConfigError, match=f"study s was made with {line}"):
        studies(*after)
    studies(*before)


def test_a_value_that_a_later_version_has_added_is_no_change(studies):
    (study,) = studies().values()
    signature = study._study.user_attrs[SIGNED]
    added = signature["fixed"].pop("algo.horizon")
    study._study.set_user_attr(SIGNED, signature)
    (study,) = studies("algo.horizon=5").values()
    # From here on it is known, as what it was first.
    assert study._study.user_attrs[SIGNED]["fixed"]["algo.horizon"] == 5 != added
    with pytest.raises(ConfigError, match=r"algo\.horizon 5, not 15"):
        studies()


def test_studies_of_the_version_before_go_on(studies, make_plan):
    """Their signatures were of the first arm, in every arm's study, and of no point of the space."""
    for plan in make_plan(*STUDY, LR, *ARMS, B):
        old = identity(plan.base)
    for study in studies(*ARMS, B).values():
        signature = study._study.user_attrs[SIGNED]
        del signature["fixed"]
        study._study.set_user_attr(SIGNED, signature | {"config": dict(old)})
    with pytest.raises(ConfigError, match=r"study s-a was made with algo\.horizon 15, not 5"):
        studies(*ARMS, B, "algo.horizon=5")
    studies(*ARMS, B)
    with pytest.raises(ConfigError, match=r"study s-b was made with lora\.r 8, not 16"):
        studies(*ARMS, B.replace("8", "16"))
