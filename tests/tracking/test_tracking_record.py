import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmdreamer.tracking.record import Shipped, load, save
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.flatten import flatten
from llmdreamer.utils.redact import as_typed, redact


def test_flattening_dots_keys_and_writes_lists_as_json():
    config = {"seed": 0, "env": {"id": "CartPole-v1", "kwargs": {}}, "keys": ["a", "b"], "x": None}
    assert flatten(config) == {
        "seed": 0,
        "env.id": "CartPole-v1",
        "env.kwargs": "{}",
        "keys": '["a", "b"]',
        "x": None,
    }


def test_flattening_blots_out_secrets_and_nothing_that_only_sounds_like_one():
    config = {
        "hub": {"hf_token": "abc", "api_key": "def"},
        "storage": "postgresql://me:hunter2@host/db",
        "tokens": 5,
        "max_tokens": 7,
    }
    assert flatten(config) == {
        "hub.hf_token": "***",
        "hub.api_key": "***",
        "storage": "postgresql://me:***@host/db",
        "tokens": 5,
        "max_tokens": 7,
    }


def test_a_command_line_is_told_without_its_secrets():
    command = "run.py -m seed=1,2 hub.hf_token=abc tracking.uri=https://u:p@ss@host:5000"
    assert (
        redact(command)
        == "run.py -m seed=1,2 hub.hf_token=*** tracking.uri=https://u:***@host:5000"
    )


def test_a_record_is_read_as_it_was_saved_and_leaves_no_draft(tmp_path: Path):
    path = tmp_path / "deep" / "shipped.json"
    assert load(Shipped, path) is None
    save(Shipped("key", 10, 20, 1), path)
    assert load(Shipped, path) == Shipped("key", 10, 20, 1)
    assert list(path.parent.iterdir()) == [path]


def test_writers_of_one_process_id_do_not_take_each_others_draft(tmp_path: Path):
    """In containers it is often 1, on every machine of a shared folder; here, of two threads."""
    path, texts = tmp_path / "results.csv", ["a" * 10_000, "b" * 10_000]

    def write(text: str) -> None:
        for _ in range(200):
            write_atomically(path, text)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, texts))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_a_record_that_cannot_be_written_leaves_no_draft(tmp_path: Path):
    path = tmp_path / "results.csv"
    path.mkdir()  # nothing can be moved onto a folder
    with pytest.raises(OSError):
        write_atomically(path, "a")
    assert list(tmp_path.iterdir()) == [path]


def test_secrets_are_blotted_out_however_they_are_given():
    for given, told in (
        ("https://s3cret@host/x", "https://***@host/x"),
        ("postgresql://u:p@ss@host/x", "postgresql://u:***@host/x"),
        ("+env.kwargs={api_key:s3cret,size:3}", "+env.kwargs={api_key:***,size:3}"),
        ("{'password': 's3 cret', 'n': 1}", "{'password': ***, 'n': 1}"),
        ("credentials=s3cret seed=1", "credentials=*** seed=1"),
        ("password=a}b])c seed=1", "password=*** seed=1"),
        ("token='it'\"'\"'s' seed=1", "token=*** seed=1"),
        ("algo.text_keys.sequence=[mission] env.id=a:B-v0", None),
    ):
        assert redact(given) == (given if told is None else told)


def test_what_was_typed_can_be_typed_again_without_its_secrets():
    words = ["model=S,M", "backbone.config={n_embd: 128, n_head: 4}", "hub.hf_token=abc", "a=[b]"]
    told = as_typed(words)
    assert shlex.split(told) == [*words[:2], "hub.hf_token=***", words[3]]
    assert told.startswith("model=S,M ")  # what needs no quotes has none
