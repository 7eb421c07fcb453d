"""Invalid sweep specifications are refused in one line, before any trial."""

import pytest
from refusals import assert_names

SPACE = "params: {algo.horizon: 'range(5,9)'}"
STUDY = f"{SPACE}, n_trials: 2"
TWO = "direction: [maximize, minimize]"


@pytest.fixture
def specified(command, tmp_path):
    """Return a function that runs `sweeps=own` with the given YAML text as `hydra.sweeper`."""
    folder = tmp_path / "specs"
    (folder / "sweeps").mkdir(parents=True)

    def typed(sweeper, *words):
        # Each trial appends its arguments to a file.
        trial = f"[sh, -c, 'echo \"$@\" >> {tmp_path}/trials']"
        text = f"# @package _global_\nhydra: {{sweeper: {{{sweeper}, command: {trial}}}}}\n"
        (folder / "sweeps" / "own.yaml").write_text(text)
        return command(*words, "sweeps=own", f"hydra.searchpath=[file://{folder}]")

    return typed


@pytest.mark.parametrize(
    ("sweeper", "typed", "parts"),
    [
        ("params: {algo.horizn: [5, 6]}", "-m", ["'algo.horizn'", "'algo.horizon'"]),
        ("params: {algo.horizn: [5, 6]}, n_trials: 2", "-m", ["'algo.horizn'", "'algo.horizon'"]),
        (f"{SPACE}, n_trails: 2", "-m", ["hydra.sweeper.n_trails"]),
        ("params: {algo.horizon: 'range(5,5)'}", "-m", ["algo.horizon=range(5,5)"]),
        ("params: {algo.horizon: 'range(5,5)'}, n_trials: 2", "-m", ["algo.horizon=range(5,5)"]),
        ("params: {algo.gamma: 'interval(0.9,0.8)'}, n_trials: 2", "-m", ["algo.gamma=interval(0.9,0.8)"]),
        ("params: {algo.horizon: []}, n_trials: 2", "-m", ["params.algo.horizon=[]"]),
        ("params: {model: [XS, Q]}, n_trials: 2", "-m", ["model=Q", "L, M, S"]),
        (f"{STUDY}, pruner: median, {TWO}", "-m objective='eval/return,compute/flops'",
         ["hydra.sweeper.pruner=median", "objectives"]),
        (STUDY, "-m objective=eval/retrun", ["objective=eval/retrun", "'eval/return'"]),
        (STUDY, "-m objective=open_loop/image_error:best",
         ["objective=open_loop/image_error:best"]),
        (f"{STUDY}, {TWO}", "-m objective='eval/return,lora/h.0.attn.c_attn'",
         ["lora/h.0.attn.c_attn", "peft=true"]),
        (STUDY, "-m rerun=true", ["rerun=true", "hydra.sweeper.study_name"]),
        (STUDY, "", ["sweeps=own", "(python run.py -m sweeps=own)"]),
    ],
)  # fmt: skip
def test_invalid_specification_is_refused_in_one_line(specified, tmp_path, sweeper, typed, parts):
    code, out, err = specified(sweeper, *typed.split())
    assert_names(err, *parts)
    assert (code, err.count("\n"), out) == (2, 1, "")
    assert not (tmp_path / "trials").exists()
    assert not (tmp_path / "outputs").exists()


def test_changed_search_space_of_a_study_is_refused_in_one_line(specified, tmp_path):
    # The trial's command trains nothing, so its run has no record and the trial fails.
    assert specified(f"{STUDY}, storage: 'sqlite:///{tmp_path}/s.db'", "-m")[0] == 1
    trials = (tmp_path / "trials").read_text()
    wider = STUDY.replace("range(5,9)", "range(5,12)")
    code, out, err = specified(f"{wider}, storage: 'sqlite:///{tmp_path}/s.db'", "-m")
    assert (code, err.count("\n"), out) == (2, 1, "")
    before, now = ("{'step': 1, 'low': 5, 'high': 8}", "{'step': 1, 'low': 5, 'high': 11}")
    assert_names(err, "algo.horizon", before, now, "hydra.sweeper.study_name")
    assert (tmp_path / "trials").read_text() == trials
