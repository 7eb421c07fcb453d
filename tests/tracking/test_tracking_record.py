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
        ("{'credentials': {'user': 'u', 'pin': 7}, 'n': 1}", "{'credentials': ***, 'n': 1}"),
        ("+env.kwargs={token:{id:a,key:S},size:3}", "+env.kwargs={token:***,size:3}"),
        ("connect(password=a,S,user=u)", "connect(password=***,user=u)"),
        ("connect(password=a, n=1)", "connect(password=***, n=1)"),
        ("Cookie: session=S; other=T", "Cookie: ***"),
        ("{'Set-Cookie': 'session=S', 'n': 1}", "{'Set-Cookie': '***', 'n': 1}"),
        ("login --password S --user u", "login --password *** --user u"),
        ("login --api-key 's S' --user u", "login --api-key *** --user u"),
        ("login --token --user u", None),
        ("Authorization: Negotiate S3cret==", "Authorization: Negotiate ***"),
        ('Authorization: Digest username="u", response="S"', "Authorization: Digest ***"),
        ("max_tokens=3 tokenizer=a token_count=3 pad_token_id=0", None),
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


@pytest.mark.parametrize(
    "value",
    [
        "{user:u,pin:Zq7}",
        "[aaaaaa,Zq7]",
        r"'it\'s Zq7'",
        r"a\,Zq7",
        r"a\ Zq7",
        "${oc.env:X,Zq7}",
        "a,Zq7",
        "choice(a,Zq7)",
        "{a:{b:[c,{d:Zq7}]}}",
    ],
)
def test_typed_secret_is_redacted_whole(value: str):
    for key in ("password", "+env.kwargs.credentials", "++a.accessToken", "signature@b"):
        assert shlex.split(as_typed([f"{key}={value}", "seed=1"])) == [f"{key}=***", "seed=1"]
    # In a sentence, where the end of a value is not known, the notations that are balanced are covered.
    assert "Zq7" not in redact(f"cannot set +env.kwargs.token={value} here")
    assert redact(f"token={value} seed=1").endswith(" seed=1")


def test_as_typed_redacts_the_word_after_a_secret_flag():
    assert as_typed(["mlflow", "--password", "s $S", "--user", "u"]) == (
        "mlflow --password *** --user u"
    )


@pytest.mark.parametrize(
    "key",
    [
        "accessToken",
        "authtoken",
        "apiToken",
        "hfToken",
        "sessiontoken",
        "userApiKey",
        "xapikey",
        "secretAccessKey",
        "awsSecretAccessKey",
        "userCredentials",
        "xsignature",
        "secret_key",
        "AWSAccessKeyId",
    ],
)
def test_glued_names_of_secrets_are_redacted(key: str):
    assert redact(f"{key}=S seed=1") == f"{key}=*** seed=1"
    assert flatten({"env": {key: "S"}}) == {f"env.{key}": "***"}


@pytest.mark.parametrize(
    "key", ["tokens", "max_tokens", "tokenizer", "token_count", "pad_token_id", "keys"]
)
def test_names_that_only_resemble_secrets_are_kept(key: str):
    assert redact(f"{key}=5") == as_typed([f"{key}=5"]) == f"{key}=5"
    assert flatten({key: 5}) == {key: 5}
