"""Code of another package: it runs only if the user trusts it on the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from refusals import assert_names, refused

from llmdreamer.cli.main import trusted_patterns
from llmdreamer.config import from_yaml
from llmdreamer.utils.errors import ConfigError

ROOT = Path(os.environ["LLMDREAMER_ROOT"])
SEARCH = "hydra.searchpath=[pkg://llmdreamer_example.conf]"
TRUST = "trust=[llmdreamer_example]"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder with only examples/llmdreamer_example, built and installed."""
    target = tmp_path_factory.mktemp("packages")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--no-input",
        "--disable-pip-version-check",
        "install",
        "-q",
    ]
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--target", str(target)]
    source = str(ROOT / "examples" / "llmdreamer_example")
    subprocess.run([*pip, *offline, source], check=True, capture_output=True, timeout=120)
    return target


def typed(installed, folder, *argv):
    path = os.pathsep.join([str(ROOT), str(installed)])
    return subprocess.run(
        [sys.executable, *argv],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path, "LLMDREAMER_FULL_ERROR": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def assert_refused(done, *parts):
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert_names(done.stderr, *parts)


def test_plugin_backbone_environment_and_agent_train_if_trusted(installed, tmp_path):
    run = str(ROOT / "run.py")
    theirs = [SEARCH, "backbone=minlstm", "algo=signs", "env=thermostat"]
    assert_refused(typed(installed, tmp_path, run, *theirs), "=llmdreamer_example.", TRUST)
    assert list(tmp_path.iterdir()) == []

    small = ["algo.total_steps=48", "algo.learning_starts=44", "eval.every=0", "run_name=first"]
    small += ["backbone.options.width=64", "eval.final_episodes=1", "checkpoint.every=40"]
    done = typed(installed, tmp_path, run, *theirs, TRUST, *small)
    assert done.returncode == 0, done.stderr
    assert "last policy" in done.stdout

    # A saved configuration does not grant trust: it must be typed again.
    again = [run, "resume=outputs/first", "algo.total_steps=52"]
    assert_refused(typed(installed, tmp_path, *again), "=llmdreamer_example.", TRUST)
    evaluate = ["-m", "llmdreamer", "evaluate", "outputs/first", "--episodes", "1"]
    assert_refused(typed(installed, tmp_path, *evaluate), "=llmdreamer_example.", TRUST)
    done = typed(installed, tmp_path, *evaluate, "--trust", "llmdreamer_example")
    assert (done.returncode, done.stdout[:7]) == (0, "return ")


@pytest.fixture
def written(tmp_path_factory):
    """Return a search path of options that set `trust`."""
    folder = tmp_path_factory.mktemp("options")
    for group, text in (
        ("exp/own", "trust: [os]\nbackbone: {name: x, factory: os.system}"),
        ("sweeps/own", "hydra: {sweeper: {params: {trust: '[os]', seed: [1, 2]}}}"),
        ("sweeps/arms", "hydra: {sweeper: {arms: {a: 'trust=[os] seed=3'}}}"),
    ):
        path = folder / f"{group}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# @package _global_\n{text}\n")
    return f"hydra.searchpath=[file://{folder}]"


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["exp=own"], ["trust=[os]", "file"]),
        (["-m", "sweeps=own"], ["trust=[os]", "file"]),
        (["-m", "sweeps=arms"], ["trust=[os]", "file"]),
        (["exp=own", "trust=[sys]"], ["backbone.factory=os.system", "trust=[os]"]),
    ],
)
def test_trust_set_in_a_file_is_refused(command, written, tmp_path, argv, parts):
    code, _, err = command(written, *argv)
    assert (code, err.count("\n"), list(tmp_path.iterdir())) == (2, 1, [])
    assert_names(err, *parts)


def test_trust_also_allows_targets_of_hydra(command, training):
    theirs = "+hydra.callbacks.theirs._target_=lightroom.callback.Listener"
    assert command(theirs)[0] == command(theirs, "trust=[light]")[0] == 2
    assert command(theirs, "trust=[lightroom]")[0] == 0
    assert len(training.runs) == 1


@pytest.mark.parametrize("name", ["*", "", "a b", "a-b", ".a", "a.", "torch*", "1", "torch.nn"])
def test_trust_in_what_is_no_package_is_refused(name, tmp_path):
    with refused(ConfigError, name, "trust="):
        trusted_patterns([f"trust=['{name}']"])
    with refused(ConfigError, name, "trust="):
        from_yaml(tmp_path / "config.yaml", [name])
