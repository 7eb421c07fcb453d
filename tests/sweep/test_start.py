"""Start points of a study: which configurations run first, and what is refused."""

from contextlib import closing

import pytest
from refusals import refused

from llmdreamer.sweep.studies.distributions import search_space
from llmdreamer.sweep.studies.search_space import to_overrides
from llmdreamer.sweep.studies.start import start_points
from llmdreamer.sweep.studies.study import Study
from llmdreamer.utils.errors import ConfigError

SPACE = [
    "model=XS,S", "algo.optimizer.lr=tag(log,interval(1e-5,1e-2))", "peft=true,false",
    "algo.imag_starts=8,null", "algo.horizon=tag(log,range(2,20))",
    "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=3",
]  # fmt: skip
DEFAULTS = "model=XS algo.optimizer.lr=0.0005 peft=false algo.imag_starts=8 algo.horizon=15"


@pytest.fixture
def points_of(make_plan):
    def points(start):
        with closing(make_plan(*SPACE, f"hydra.sweeper.start={start}")) as plans:
            plan = next(plans)
            return start_points(plan, search_space(plan.swept), [])

    return points


def test_empty_start_point_is_the_configuration_itself(points_of):
    (point,) = points_of("[{}]")
    assert " ".join(to_overrides(point)) == DEFAULTS


def test_start_point_keeps_the_configuration_where_it_is_silent(points_of):
    first, second = points_of("[{peft:true,algo.imag_starts:null},{model:S,algo.horizon:3}]")
    assert (first["peft"], first["algo.imag_starts"], first["algo.horizon"]) == (True, "null", 15)
    assert (second["model"], second["algo.horizon"], second["peft"]) == ("S", 3, False)


@pytest.mark.parametrize(
    ("start", "parts"),
    [
        ("[{lr:1e-3}]", ["lr", "'algo.optimizer.lr'"]),
        ("[{algo.optimizer.lr:1}]", ["algo.optimizer.lr=1", "1e-05"]),
        ("[{algo.optimizer.lr:true}]", ["algo.optimizer.lr=true"]),
        ("[{algo.optimizer.lr:nan}]", ["nan"]),
        ("[{algo.horizon:inf}]", ["inf"]),
        ("[{algo.horizon:3.5}]", ["algo.horizon=3.5"]),
        ("[{model:Q}]", ["model=Q", "XS,S"]),
        ("[{peft:1}]", ["peft=1"]),
        ("[{algo.imag_starts:2}]", ["algo.imag_starts=2", "8,null"]),
        ("[{},{peft:false}]", ["twice", "peft=false"]),
        ("[{},{hydra.run.dir:elsewhere}]", ["hydra.run.dir"]),
    ],
)
def test_start_point_outside_the_space_is_refused(points_of, start, parts):
    with refused(ConfigError, "hydra.sweeper.start", *parts):
        points_of(start)


def test_configuration_outside_the_space_is_no_start_point(make_plan):
    values = ["algo.horizon=3,5", "hydra.sweeper.n_trials=2", "hydra.sweeper.start=[{}]"]
    with closing(make_plan(*values)) as plans:
        plan = next(plans)
        with refused(ConfigError, "algo.horizon=15", "3,5"):
            start_points(plan, search_space(plan.swept), [])


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_start_points_run_first_and_once(make_plan, sampler):
    command = [
        "algo.horizon=3,5,15", "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=5",
        f"hydra.sweeper.sampler={sampler}",
    ]  # fmt: skip

    def drawn(start, count):
        labels = []
        for plan in make_plan(*command, f"hydra.sweeper.start={start}"):
            study = Study(plan)
            for _ in range(count):
                task = study.next_task()
                labels.append(task and task.label.split(" ", 2)[2])
            study.close()
        return labels

    assert drawn("[{},{algo.horizon:3}]", 2) == ["algo.horizon=15", "algo.horizon=3"]
    # The next driver takes both over, then has one value left.
    resumed = drawn("[{},{algo.horizon:3}]", 4)
    assert resumed == ["algo.horizon=15", "algo.horizon=3", "algo.horizon=5", None]


@pytest.mark.parametrize(
    "setting", ["start=[{}]", "constraints={flops:1}", "max_hours=1", "max_flops=1"]
)
def test_setting_of_studies_is_refused_for_a_grid(make_plan, setting):
    with refused(ConfigError, "hydra.sweeper.", setting.partition("=")[0], "n_trials"):
        next(make_plan("algo.horizon=3,5", f"hydra.sweeper.{setting}"))
