"""Property tests: any typed command composes and runs, or is refused in one line.

`LLMDREAMER_EXAMPLES=5000 pytest tests/cli/test_anything.py` tries more examples, chosen at random.
"""

import os
from pathlib import Path

import hydra
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmdreamer import config
from llmdreamer.cli import train
from llmdreamer.cli.explain import explain
from llmdreamer.cli.main import refuse_misused_flags
from llmdreamer.config import GROUPS, ComposedConfig, Config, leaves

EXTRA_EXAMPLES = int(os.environ.get("LLMDREAMER_EXAMPLES", "0"))
CONF = str(Path(os.environ["LLMDREAMER_ROOT"]) / "conf")
LEAVES = leaves(ComposedConfig)
KEYS = sorted({*LEAVES, *GROUPS, *(leaf.rpartition(".")[0] or leaf for leaf in LEAVES)})
HYDRA_KEYS = [
    *("hydra.verbose", "hydra.job.name", "hydra.job.num", "hydra.searchpath", "hydra.callbacks"),
    *(
        "hydra.sweeper",
        "hydra.sweeper.n_trials",
        "hydra/launcher",
        "hydra/sweeper",
        "hydra",
        "hydra.x",
    ),
]
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
    st.sampled_from(
        ["1_0", "0x10", "1e3", "nan", "None", "~", "!!str a", "'a b'", '"', "\\", "a\nb", "é"]
    ),
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
    # Lists of values, which need -m, and bytes that are not text, as a shell may pass them.
    st.sampled_from(
        ["1,2", "choice(1,2)", "range(3)", "glob(*)", "sort(3,2)", "[1,2", "\udcff", ""]
    ),
    st.text(max_size=20),
)
typed = st.builds(
    lambda sign, key, tail, equals, value: f"{sign}{key}{tail}{equals}{value if equals else ''}",
    st.sampled_from(["", "", "", "", "+", "++", "~", "~~"]),
    st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), st.sampled_from(HYDRA_KEYS), words),
    st.sampled_from(["", "", "", "", ".x", "@here", "@a.b:c", "/x", "[0]"]),
    st.sampled_from(["=", "=", "=", "=", ""]),
    values,
)


def compose(overrides: list[str]) -> Config:
    refuse_misused_flags(overrides)
    config.register()
    with hydra.initialize_config_dir(CONF):
        return config.load(hydra.compose("config", overrides=overrides), overrides)


def tries(examples: int) -> settings:
    """Return settings with the same examples each time, or with more random ones on request."""
    return settings(
        max_examples=EXTRA_EXAMPLES or examples,
        deadline=None,
        derandomize=not EXTRA_EXAMPLES,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


@tries(80)
@given(st.lists(typed, min_size=1, max_size=3))
def test_any_command_composes_or_is_refused_in_one_line(overrides):
    try:
        assert isinstance(compose(overrides), Config)
    except Exception as error:
        message = explain(error, train.run)
        if message is None:
            raise
        assert message.exit_code == 2 and message.line and "\n" not in message.line


@tries(12)
@given(
    st.lists(typed, max_size=3).filter(
        lambda items: not any("output_root" in item for item in items)
    )
)
def test_any_command_runs_or_is_refused_in_one_line(command, overrides):
    code, _, err = command("threads=1", *overrides)
    assert (code, err.count("\n")) in [(0, 0), (2, 1)], err


@pytest.mark.parametrize("overrides", [["algo.horizon=5"], ["env.kwargs={}"], ["eval.every=0"]])
def test_valid_override_composes(overrides):
    assert isinstance(compose(overrides), Config)
