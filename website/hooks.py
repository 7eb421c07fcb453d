"""Hooks of MkDocs: pages from outside docs/, generated pages, and links that are right on GitHub and here."""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "website"))

import configuration

# Pages of the repository outside docs/, and their place in the site.
OUTSIDE = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "analysis/README.md": "compare.md",
    "analysis/data/README.md": "published.md",
    "benchmarks/README.md": "benchmarks.md",
}
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_IMAGE = re.compile(r"(!\[[^\]]*\]\()([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside docs/, the reference of keys, and a page for each package."""
    for source, place in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
    page = configuration.page()
    files.append(File.generated(config, "reference/configuration.md", content=page))
    for package in packages():
        files.append(
            File.generated(config, f"reference/{package}.md", content=package_page(package))
        )
    return files


def on_config(config: Any) -> Any:
    """Add the pages of the packages to the navigation."""
    (reference,) = [item["Reference"] for item in config.nav if "Reference" in item]
    reference += [{f"llmdreamer.{name}": f"reference/{name}.md"} for name in packages()]
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Files) -> str:
    """Point links to the place that their target has in the site."""
    source = source_of(page.file.src_uri)
    if source is None:
        return markdown
    folder = posixpath.dirname(source)

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or ":" in target:
            return match[0]
        place = place_of(posixpath.normpath(posixpath.join(folder, target)))
        return f"[{text}]({relative(place, page)}{anchor})" if place else text

    def image(match: re.Match[str]) -> str:
        if ":" in match[2]:
            return match[0]
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        return f"{match[1]}{relative(target.removeprefix('docs/'), page)})"

    return _LINK.sub(link, _IMAGE.sub(image, markdown))


def source_of(place: str) -> str | None:
    """Return the file of the repository that a page of the site is made from; None if it is generated."""
    for source, outside in OUTSIDE.items():
        if outside == place:
            return source
    return None if place.startswith("reference/") else f"docs/{place}"


def place_of(source: str) -> str | None:
    """Return the page or file of the site for a file of the repository; None if the site has none."""
    if source in OUTSIDE:
        return OUTSIDE[source]
    if source.startswith("docs/"):
        return source.removeprefix("docs/") if (ROOT / source).is_file() else None
    if source.startswith("llmdreamer/") and source.endswith(".py"):
        module = source.removesuffix(".py").replace("/", ".")
        return f"reference/{source.split('/')[1]}.md#{module}"
    return None


def relative(place: str, page: Any) -> str:
    return posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")


def packages() -> list[str]:
    """Return the packages of llmdreamer, the Python interface first."""
    names = [path.parent.name for path in (ROOT / "llmdreamer").glob("*/__init__.py")]
    return sorted(names, key=lambda name: (name != "api", name))


def package_page(package: str) -> str:
    """Return a page with the docstrings of all modules of a package."""
    folder = ROOT / "llmdreamer" / package
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    folders = sorted(path.parent.name for path in folder.glob("*/__init__.py"))
    lines = [f"# llmdreamer.{package}", "", f"::: llmdreamer.{package}", ""]
    for module in modules:
        lines += [f"::: llmdreamer.{package}.{module}", ""]
    for inner in folders:
        inner_modules = sorted((folder / inner).glob("*.py"))
        for path in inner_modules:
            name = "" if path.stem == "__init__" else f".{path.stem}"
            lines += [f"::: llmdreamer.{package}.{inner}{name}", ""]
    return "\n".join(lines)
