"""Test that the advice on keys of a mapping, such as env.kwargs, can be typed and works."""

import re
import shlex

import pytest

from llmdreamer.cli.explain import explain

ADVICE = re.compile(r"type (?:such a key as )?('.*')$")


def task() -> None:
    """Stand for the program, whose own code has not started."""


@pytest.mark.parametrize(
    ("typed", "kwargs"),
    [
        ("+env.kwargs={'a@b': 1}", {"a@b": 1}),
        ("env.kwargs={'a@b': 1}", {"a@b": 1}),
        ("++env.kwargs={\"a b\": {'c:d': x}, 'e': 'f'}", {"a b": {"c:d": "x"}, "e": "f"}),
        ("+env.kwargs={'a': 'x', 'b': [1,2]}", {"a": "x", "b": [1, 2]}),
        ("+env.kwargs={'a{b': 1, 'c=d': 2}", {"a{b": 1, "c=d": 2}),
        ("+env.kwargs.a@b=1", {"a@b": 1}),
        ("+env.kwargs.a/b=1", {"a/b": 1}),
    ],
)
def test_advice_on_keys_of_env_kwargs_works_as_typed(compose, typed, kwargs):
    with pytest.raises(Exception) as caught:
        compose("env=acrobot", typed)
    message = explain(caught.value, task)
    assert message is not None and message.exit_code == 2 and "\n" not in message.line
    assert message.line.startswith(typed)
    advice = ADVICE.search(message.line)
    assert advice is not None, message.line
    assert compose("env=acrobot", *shlex.split(advice[1])).env.kwargs == kwargs


@pytest.mark.parametrize("key", ["é", "a#b"])
def test_key_that_cannot_be_typed_names_a_file(compose, key):
    with pytest.raises(Exception) as caught:
        compose("env=acrobot", f"+env.kwargs={{'{key}': 1}}")
    message = explain(caught.value, task)
    assert message is not None and key in message.line and "conf/env/" in message.line


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("hydra.sweeper.constraints={parameter:1}", "'hydra.sweeper.constraints.parameters'"),
        ("algo.optimizer={lrr:1}", "'algo.optimizer.lrr'; did you mean 'algo.optimizer.lr'"),
        ("hydra.sweeper.params={model:XS}", "+hydra.sweeper.params.NAME="),
    ],
)
def test_unknown_key_inside_a_typed_mapping_is_named(compose, typed, named):
    with pytest.raises(Exception) as caught:
        compose(typed)
    message = explain(caught.value, task)
    assert message is not None and message.exit_code == 2 and named in message.line
