"""One part of an analysis: sentences, tables and figures, which a notebook or a page can show."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

DPI = 150
# Without dates and random ids a figure drawn again has the same bytes.
_METADATA: dict[str, dict[str, str | None]] = {"png": {"Software": None}, "svg": {"Date": None}}


@dataclass(frozen=True)
class Part:
    """What is shown under one heading, text first. A notebook's cell that ends in it shows it."""

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[pd.DataFrame] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)  # by the name of their file

    def _repr_html_(self) -> str:
        rows = [f"<h2>{html.escape(self.title)}</h2>"]
        rows += [f"<p>{html.escape(line)}</p>" for line in self.text]
        rows += [
            table.to_html(index=False, border=0, na_rep="", escape=True) for table in self.tables
        ]
        for name, figure in self.figures.items():
            data = base64.b64encode(picture(figure, "png")).decode()
            rows.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">')
        return "\n".join(rows)

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:
        """For readers of text only."""
        lines = [self.title, *self.text, *(table.to_string(index=False) for table in self.tables)]
        printer.text("\n".join(lines))  # type: ignore[attr-defined]


def picture(figure: Figure, kind: str) -> bytes:
    """A figure as the bytes of a `png` or `svg` file."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "llmdreamer"}):
        figure.savefig(file, format=kind, dpi=DPI, metadata=_METADATA[kind])
    return file.getvalue()


def save(part: Part, folder: Path, kinds: tuple[str, ...] = ("png", "svg")) -> list[Path]:
    """Write a part's figures as files of these kinds and its tables as CSV; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in part.figures.items():
        for kind in kinds:
            path = folder / f"{name}.{kind}"
            path.write_bytes(picture(figure, kind))
            written.append(path)
    for number, table in enumerate(part.tables, 1):
        path = folder / f"{_slug(part.title)}{'' if number == 1 else f'-{number}'}.csv"
        table.to_csv(path, index=False)
        written.append(path)
    return written


def _slug(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
