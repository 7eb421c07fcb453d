"""A text is kept as it was typed, also if Hydra would read it as a number or a truth value."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from llmdreamer.cli.texts import quote_texts


@pytest.mark.parametrize(
    "key", ["run_name", "hydra.sweeper.study_name", "tracking.experiment", "env.id"]
)
@pytest.mark.parametrize(
    "text", ["true", "TRUE", "1e3", "007", "1_000", "1.50", "7", "inf", "nan", "-1"]
)
def test_typed_text_is_kept(key, text):
    (word,) = quote_texts([f"{key}={text}"])
    assert OverridesParser.create().parse_override(word).value() == text


@pytest.mark.parametrize(
    "word",
    [
        *("run_name=null", "run_name='1e3'", "run_name=a", "run_name=1,2", "run_name=("),
        *("-m", "seed=1", "peft=true", "threads=1", "env.id=glob(*)"),
    ],
)
def test_other_words_stay_as_they_are(word):
    assert quote_texts([word]) == [word]
