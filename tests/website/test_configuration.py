"""The page of all keys, made from the schema and the comments in conf/."""

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from llmdreamer.config import ComposedConfig, leaves

ROOT = Path(os.environ["LLMDREAMER_ROOT"])


@pytest.fixture(scope="module")
def configuration():
    path = ROOT / "website" / "configuration.py"
    spec = importlib.util.spec_from_file_location("website_configuration", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def test_every_key_of_the_schema_has_a_row_with_a_meaning(configuration):
    assert [key.name for key in configuration.schema_keys() if not key.meaning] == []
    page = configuration.page()
    assert [key for key in leaves(ComposedConfig) if f"\n| `{key}` | " not in page] == []


def test_row_shows_default_type_and_comment(configuration):
    page = configuration.page()
    meaning = "seeds weights, environments, replay and actions; 0 to 2^32 - 1"
    assert f"| `seed` | `0` | int | {meaning} |" in page
    assert "| `threads` | `null` | int or null | CPU threads" in page


def test_groups_list_their_options(configuration):
    page = configuration.page()
    assert "`block_gru`: " in page and "`smoke`: Does everything work together?" in page


def test_comment_is_found_beside_above_and_in_the_parent(configuration):
    text = """\
# About the whole file.
plain: 1
a: 1                  # beside,
                      # continued
# above
b: 2
parent:               # of both
  inner: 3
  other: {deep: 4}    # its own
"""
    assert configuration.file_comments(text) == {
        "a": "beside, continued",
        "b": "above",
        "parent": "of both",
        "parent.inner": "of both",
        "parent.other": "its own",
        "parent.other.deep": "its own",
    }
