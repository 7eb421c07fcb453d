"""The names that the runs of a sweep have in MLflow: what tells them from one another."""

from llmdreamer.sweep.grid import Grid
from llmdreamer.sweep.results_table import make_shortener
from llmdreamer.sweep.studies.study import Study
from llmdreamer.tracking.trial import VARIANT_TAG


def first_variant(source):
    task = source.next_task()
    source.close()
    return task.tags[VARIANT_TAG]


def test_grid_run_is_named_by_what_varies_and_its_seed(make_plan):
    for plan in make_plan("replay_ratio=0", "model=XS,S", "algo.horizon=3", "seed=2"):
        assert first_variant(Grid(plan)) == "model=XS seed=2"


def test_study_run_is_named_by_its_trial_and_rounded_parameters(make_plan):
    lr = "algo.optimizer.lr=interval(0.00123,0.00123000001)"
    study = ("hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=1")
    for plan in make_plan(*study, lr, "replay_ratio=1,2", "seeds=2"):
        name = first_variant(Study(plan))
    assert name.startswith("#0 lr=0.00123 replay_ratio=") and name.endswith(" seed=0")


def test_shortened_keys_stay_distinct():
    shorten = make_shortener(["a.lr", "b.lr", "c.depth"])
    assert shorten("a.lr=0.000123456 b.lr=1 c.depth=3") == "a.lr=0.0001235 b.lr=1 depth=3"
