import shlex
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from llmdreamer.tracking.record import UploadCursor, load, save
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.flatten import flatten
from llmdreamer.utils.redact import as_typed, redact


def test_flatten_joins_keys_with_dots_and_writes_lists_as_json():
    config = {"seed": 0, "env": {"id": "CartPole-v1", "kwargs": {}}, "keys": ["a", "b"], "x": None}
    assert flatten(config) == {
        "seed": 0,
        "env.id": "CartPole-v1",
        "env.kwargs": "{}",
        "keys": '["a", "b"]',
        "x": None,
    }


def test_flatten_redacts_secrets_and_keeps_similar_keys():
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


def test_redact_removes_secrets_from_a_command_line():
    command = "run.py -m seed=1,2 hub.hf_token=abc tracking.uri=https://u:p@ss@host:5000"
    assert (
        redact(command)
        == "run.py -m seed=1,2 hub.hf_token=*** tracking.uri=https://u:***@host:5000"
    )


def test_load_returns_what_save_wrote_and_no_temporary_file_remains(tmp_path: Path):
    path = tmp_path / "deep" / "upload_cursor.json"
    assert load(UploadCursor, path) is None
    save(UploadCursor("key", 10, 20, 1), path)
    assert load(UploadCursor, path) == UploadCursor("key", 10, 20, 1)
    assert list(path.parent.iterdir()) == [path]


def test_concurrent_writers_in_one_process_do_not_mix_their_files(tmp_path: Path):
    """Process ids may collide in a shared folder: in containers the id is often 1."""
    path, texts = tmp_path / "results.csv", ["a" * 10_000, "b" * 10_000]

    def write(text: str) -> None:
        for _ in range(200):
            write_atomically(path, text)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, texts))
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_leaves_no_temporary_file(tmp_path: Path):
    path = tmp_path / "results.csv"
    path.mkdir()  # a file cannot replace a folder
    with pytest.raises(OSError):
        write_atomically(path, "a")
    assert list(tmp_path.iterdir()) == [path]


def test_redact_removes_secrets_in_every_notation():
    for text, redacted in (
        ("https://s3cret@host/x", "https://***@host/x"),
        ("postgresql://u:p@ss@host/x", "postgresql://u:***@host/x"),
        ("+env.kwargs={api_key:s3cret,size:3}", "+env.kwargs={api_key:***,size:3}"),
        ("{'password': 's3 cret', 'n': 1}", "{'password': ***, 'n': 1}"),
        ("credentials=s3cret seed=1", "credentials=*** seed=1"),
        ("password=a}b])c seed=1", "password=*** seed=1"),
        ("token='it'\"'\"'s' seed=1", "token=*** seed=1"),
        ("postgresql://h/db?user=u&password=s3,c@ret", "postgresql://h/db?user=u&password=***"),
        ("'http://h:80/?password=s3cret&x=1'", "'http://h:80/?password=***&x=1'"),
        ("postgresql://u:s3/cret@h/db", "postgresql://u:***@h/db"),
        ("postgresql://h/db?sslpassword=s3cret", "postgresql://h/db?sslpassword=***"),
        ("to http://h/?token=s3cret; retry", "to http://h/?token=***; retry"),
        ("sslpassword=s3cret seed=1", "sslpassword=*** seed=1"),
        ("Authorization: Bearer s3cret.s3cret", "Authorization: Bearer ***"),
        ("Basic dXNlcjpwYXNzd29yZA==", "Basic ***"),
        ("Basic training of Bearer tokens", None),
        ("Authorization: Bearer onlyletters", "Authorization: Bearer ***"),
        ("{'Authorization': 'onlyletters'}", "{'Authorization': '***'}"),
        ("https_proxy=u:s3cret@h:3128", "https_proxy=u:***@h:3128"),
        ("https://h/x?sv=1&sig=a%2Fd&se=2", "https://h/x?sv=1&sig=***&se=2"),
        ("https://h/?X-Amz-Signature=a&x=1", "https://h/?X-Amz-Signature=***&x=1"),
        ("https://h/?key=s3cret", "https://h/?key=***"),
        ("AccountName=n;AccountKey=s3cret==", "AccountName=n;AccountKey=***"),
        ("X-Api-Key: s3cret", "X-Api-Key: ***"),
        ("origin https://s3cret@github.com/a/b", "origin https://***@github.com/a/b"),
        ("postgresql://h/db?sslkey=/k.pem", "postgresql://h/db?sslkey=***"),
        ("sort key=3 keys=[a] signature_length=3", None),
        ("http://host:5000/path seed=1", None),
        ("algo.text_keys.sequence=[mission] env.id=a:B-v0", None),
    ):
        assert redact(text) == (text if redacted is None else redacted)
        assert redact(redact(text)) == redact(text)


def test_as_typed_quotes_words_for_a_shell_and_redacts_secrets():
    words = ["model=S,M", "backbone.config={n_embd: 128, n_head: 4}", "hub.hf_token=abc", "a=[b]"]
    command = as_typed(words)
    assert shlex.split(command) == [*words[:2], "hub.hf_token=***", words[3]]
    assert command.startswith("model=S,M ")  # no quotes where none are needed
