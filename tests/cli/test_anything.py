"""Whatever is typed, it is refused in one line or it composes: no other error comes out."""

import os
from pathlib import Path

import hydra
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import run
from llmdreamer import config
from llmdreamer.cli.explain import explain
from llmdreamer.cli.main import refuse_misused_flags
from llmdreamer.config import GROUPS, Config, leaves

CONF = str(Path(os.environ["LLMDREAMER_ROOT"]) / "conf")
KEYS = sorted({*leaves(), *GROUPS, *(leaf.rpartition(".")[0] or leaf for leaf in leaves())})
words = st.text("abcdefghijklmnopqrstuvwxyzXSML0123456789._-", min_size=1, max_size=12)
numbers = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(-2, 300),
    st.floats(allow_subnormal=False),
    st.booleans(),
)
plain = st.one_of(
    numbers.map(str),
    words,
    st.sampled_from(["null", "''", "???", "auto", "gru", "hf", "coupled", "true", "-inf", "1e999"]),
)
values = st.one_of(
    plain,
    st.lists(plain, max_size=3).map(lambda items: f"[{','.join(items)}]"),
    st.dictionaries(words, plain, max_size=2).map(
        lambda items: "{" + ",".join(f"{key}:{value}" for key, value in items.items()) + "}"
    ),
    st.sampled_from(KEYS).map(lambda key: f"${{{key}}}"),
    st.sampled_from(
        ["${oc.env:HOME}", "${oc.env:NOT_THERE}", "${now:%Y}", "${", "$", "interval(1,2)"]
    ),
    st.text(max_size=20),
)
typed = st.builds(
    lambda sign, key, tail, value: f"{sign}{key}{tail}={value}",
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), words),
    st.sampled_from(["", "", "", ".x", "@here"]),
    values,
)


def compose(overrides: list[str]) -> Config:
    refuse_misused_flags(overrides)
    config.register()
    with hydra.initialize_config_dir(CONF):
        return config.load(hydra.compose("config", overrides=overrides), overrides)


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(st.lists(typed, min_size=1, max_size=3))
def test_anything_composes_or_is_refused_in_one_line(overrides):
    try:
        assert isinstance(compose(overrides), Config)
    except Exception as error:
        told = explain(error, run.run)
        if told is None:
            raise
        assert told.exit_code == 2 and told.line and "\n" not in told.line


@pytest.mark.parametrize("overrides", [["algo.horizon=5"], ["env.kwargs={}"], ["eval.every=0"]])
def test_what_is_meant_composes(overrides):
    assert isinstance(compose(overrides), Config)
