"""Writes the page of all configuration keys from the schema and the comments in conf/: it cannot drift.

python website/configuration.py        prints the page
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from llmdreamer.config import GROUPS, ComposedConfig, leaves
from llmdreamer.config.compose import compose
from llmdreamer.config.sources import conf_folder, config_root

# A key is documented in several files. The first of these that has a comment for it counts, then any other.
FIRST_FILES = (
    "config",
    "algo/dreamer_v3",
    "lora/default",
    "env/cartpole",
    "backbone/hf",
    "backbone/gru",
    "model/XS",
    "recipe/laptop",
)


@dataclasses.dataclass(frozen=True)
class Key:
    """A key of the schema, as the page shows it."""

    name: str
    kind: str
    default: str
    meaning: str


def schema_keys() -> list[Key]:
    """Return every key of the schema, with its type, default and comment."""
    comments = _schema_comments(ComposedConfig) | _all_comments()
    comments |= {long: f"as `{short}`: {comments[short]}" for short, long in _LONG_NAMES.items()}
    config = dataclasses.asdict(compose())
    return [
        Key(name, _type_name(kind), _default(config, name), comments.get(name, ""))
        for name, kind in leaves(ComposedConfig).items()
    ]


def page() -> str:
    """Return the page as Markdown."""
    lines = [
        "# Every key",
        "",
        "Made from the schema (`llmdreamer/config/schema.py`) and the comments in `conf/`. Defaults are"
        " those of `llmdreamer train` without overrides; other options of a group change them.",
        "",
        "## Groups",
        "",
        "| group | options |",
        "|---|---|",
    ]
    for group in GROUPS:
        lines.append(f"| `{group}` | {'; '.join(_options(group))} |")
    for section, members in _sections(schema_keys()).items():
        lines += [
            "",
            f"## {section}",
            "",
            "| key | default | type | meaning |",
            "|---|---|---|---|",
        ]
        lines += [
            f"| `{key.name}` | `{key.default}` | {key.kind} | {_cell(key.meaning)} |"
            for key in members
        ]
    return "\n".join(lines) + "\n"


def _sections(all_keys: list[Key]) -> dict[str, list[Key]]:
    """Group keys by their first name; `algo` by the first two."""
    sections: dict[str, list[Key]] = {}
    for key in all_keys:
        parents = key.name.split(".")[:-1]
        depth = 2 if parents[:1] == ["algo"] else 1
        title = ".".join(parents[:depth]) or ("Short keys" if key.name in _LONG_NAMES else "Run")
        sections.setdefault(title, []).append(key)
    return sections


def _options(group: str) -> Iterator[str]:
    """Yield each option of a group with the first sentence of its file."""
    folder = config_root() / "sweeps" if group == "sweeps" else conf_folder() / group
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        head = re.match(r"(?:#(?! @).*\n)+", re.sub(r"^# @.*\n", "", text))
        words = " ".join(re.findall(r"# ?(.*)", head[0])) if head else ""
        sentence = re.split(r"(?<=[.?:])\s", words, maxsplit=1)[0].rstrip(".:")
        yield f"`{path.stem}`" + (f": {_cell(sentence)}" if sentence else "")


def _all_comments() -> dict[str, str]:
    files = [conf_folder() / f"{name}.yaml" for name in FIRST_FILES]
    files += [path for path in sorted(conf_folder().rglob("*.yaml")) if path not in files]
    comments: dict[str, str] = {}
    for path in files:
        group = path.relative_to(conf_folder()).parent.as_posix()
        text = path.read_text(encoding="utf-8")
        is_global = group == "." or "@package _global_" in text
        prefix = "" if is_global else f"{group.replace('/', '.')}."
        for name, comment in file_comments(text).items():
            comments.setdefault(prefix + name, comment)
    return comments


def _schema_comments(cls: type, prefix: str = "") -> dict[str, str]:
    """Return the comments on the fields of the schema's classes, by dotted name."""
    source = inspect.getsource(cls)
    comments: dict[str, str] = {}
    for name, kind in get_type_hints(cls).items():
        if dataclasses.is_dataclass(kind):
            comments |= _schema_comments(kind, f"{prefix}{name}.")
        elif found := re.search(rf"^    {name}: .*?  # (.*)$", source, re.MULTILINE):
            comments[prefix + name] = found[1]
    return comments


def file_comments(text: str) -> dict[str, str]:
    """Return the comment of each key of a YAML file, by its dotted name.

    It stands on the key's line, with further lines below it, or on the lines above. A key without one has
    that of the mapping that holds it.
    """
    lines = text.splitlines()
    comments: dict[str, str] = {}
    for name, line in _key_lines(yaml.compose(text)):
        found = _comment_at(lines, line) or comments.get(name.rpartition(".")[0], "")
        if found:
            comments[name] = found
    return comments


def _key_lines(node: yaml.Node | None, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Yield the dotted name and the line of every key; a mapping comes before its keys."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line
            yield from _key_lines(value, f"{name}.")


def _comment_at(lines: list[str], line: int) -> str:
    _, mark, comment = lines[line].partition(" #")
    if not mark:
        above = line
        while above > 1 and re.match(r"\s{0,11}# (?!---)", lines[above - 1]):
            above -= 1
        # A comment at the top of a file is about the whole file.
        is_head = all(text.startswith("#") for text in lines[:line])
        return "" if is_head else _join(lines[above:line])
    below = line + 1
    while below < len(lines) and re.match(r"\s{12,}#", lines[below]):
        below += 1
    return _join([f"#{comment}", *lines[line + 1 : below]])


def _join(lines: list[str]) -> str:
    return " ".join(line.strip().lstrip("#").strip() for line in lines)


def _type_name(kind: Any) -> str:
    name = kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)
    return name.replace("typing.", "").replace(" | None", " or null").replace("NoneType", "null")


def _default(config: dict[str, Any], name: str) -> str:
    value: Any = config
    for part in name.split("."):
        if part not in value:  # a short key, which `load` has resolved
            return _default(config, _LONG_NAMES[name])
        value = value[part]
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()
    )


_LONG_NAMES = {
    "peft": "algo.world_model.hf_model.peft",
    "pretrained": "algo.world_model.hf_model.from_pretrained",
    "posterior": "algo.world_model.posterior",
    "replay_ratio": "algo.replay_ratio",
    "precision": "algo.precision",
    "compile": "algo.compile",
}


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(page())
