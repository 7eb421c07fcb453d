"""Rules of naming and prose that a reader would otherwise have to check by eye."""

import ast
import re
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sorted((ROOT / "llmdreamer").rglob("*.py")) + sorted(
    (ROOT / "hydra_plugins").rglob("*.py")
)
TESTS = sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "examples").rglob("test_*.py"))
CONFIGS = sorted((ROOT / "conf").rglob("*.yaml")) + sorted((ROOT / "sweeps").rglob("*.yaml"))

BANNED = re.compile(
    r"(?<![a-z])(told|foret\w*|dreamt|dreams?|dreamed|lived?s?|anew|whoever|begun|elsewhere|spelled)(?![a-z])"
)
"""Words of a private dialect that no identifier and no sentence may use."""
ALLOWED = {"live"}  # the adjective, as in a live table
ODD_OPENINGS = {"of", "what", "whether", "who", "whoever", "where", "how", "whose", "whom"}


def words_of(identifier: str) -> list[str]:
    """Split snake_case and CamelCase into lower-case words."""
    return [w.lower() for w in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", identifier)]


def banned_in(text: str) -> set[str]:
    return {m.group(1) for m in BANNED.finditer(text.lower())} - ALLOWED


def identifiers(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.Name():
                yield node.id
            case ast.Attribute():
                yield node.attr


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield getattr(node, "name", path.stem), text


def comments(path: Path) -> Iterator[str]:
    with tokenize.open(path) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type == tokenize.COMMENT:
                yield token.string


@pytest.mark.parametrize("path", PACKAGE + TESTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_identifiers_hold_no_banned_word(path: Path) -> None:
    bad = {name for name in identifiers(path) if banned_in(" ".join(words_of(name)))}
    assert not bad


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_docstrings_open_plainly_and_hold_no_banned_word(path: Path) -> None:
    bad = [
        (name, text.splitlines()[0])
        for name, text in docstrings(path)
        if text.split()[0].lower().strip(".,:") in ODD_OPENINGS or banned_in(text)
    ]
    assert not bad


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_comments_hold_no_banned_word(path: Path) -> None:
    assert not [text for text in comments(path) if banned_in(text)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_config_comments_hold_no_banned_word(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if "#" in line and banned_in(line.partition("#")[2])]


def test_class_names_occur_once_in_the_package() -> None:
    names = Counter(
        node.name
        for path in PACKAGE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert not [name for name, count in names.items() if count > 1]


def test_test_names_are_short_and_plain() -> None:
    names = {
        node.name
        for path in TESTS
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert not {name for name in names if len(name) > 80 or banned_in(name.replace("_", " "))}


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("*.md"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_pages_hold_no_banned_word(path: Path) -> None:
    assert not banned_in(path.read_text(encoding="utf-8"))


def test_at_most_two_modules_stand_beside_the_packages() -> None:
    beside = {p.stem for p in (ROOT / "llmdreamer").glob("*.py")} - {"__init__"}
    assert len(beside) <= 2


def test_every_package_is_in_the_layer_contract() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    layers = set(re.findall(r"\w+", re.search(r"layers = \[(.*?)\]", text, re.S)[1]))
    there = {p.stem for p in (ROOT / "llmdreamer").iterdir() if (p / "__init__.py").exists()}
    there |= {p.stem for p in (ROOT / "llmdreamer").glob("*.py")} - {"__init__"}
    assert layers == there
    assert "exhaustive = true" in text


def test_no_path_of_a_machine_is_committed() -> None:
    pages = [*(ROOT / "docs").rglob("*"), *(ROOT / "analysis").rglob("*.md"), ROOT / "README.md"]
    found = [
        (path.name, line)
        for path in pages
        if path.is_file() and path.suffix in {".md", ".csv", ".json", ".txt"}
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"(?<![\w.])/(work|root|home/\w+|tmp/\w+)/", line)
    ]
    assert not found
