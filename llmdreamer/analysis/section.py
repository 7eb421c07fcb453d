"""A section of an analysis: text, tables and figures that a notebook or a page can show."""

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
NOTEBOOK_DPI, PALETTE_COLORS = 80, 128  # notebooks with their outputs are in the repository
# Without dates and random ids, drawing a figure again gives the same bytes.
_METADATA: dict[str, dict[str, str | None]] = {"png": {"Software": None}, "svg": {"Date": None}}


@dataclass(frozen=True)
class Section:
    """Text, tables and figures under one heading, in this order.

    A report shows it as HTML. A notebook has headings of its own, and shows the figures as PNG images,
    which every viewer of notebooks displays.
    """

    title: str
    text: list[str] = field(default_factory=list)
    tables: list[pd.DataFrame] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)  # by file name, without extension

    def _repr_html_(self) -> str:
        elements = [f"<h2>{html.escape(self.title)}</h2>", *self._text_elements()]
        for name, figure in self.figures.items():
            data = base64.b64encode(render(figure, "png")).decode()
            elements.append(f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">')
        return "\n".join(elements)

    def _text_elements(self) -> list[str]:
        elements = [f"<p>{html.escape(line)}</p>" for line in self.text]
        return elements + [
            table.to_html(index=False, border=0, na_rep="", escape=True) for table in self.tables
        ]

    def _ipython_display_(self) -> None:
        from IPython.display import display

        plain = [*self.text, *(table.to_string(index=False, na_rep="") for table in self.tables)]
        if plain:
            texts = {"text/html": "\n".join(self._text_elements()), "text/plain": "\n".join(plain)}
            display(texts, raw=True)
        for name, figure in self.figures.items():
            image = base64.b64encode(_small_png(figure)).decode()
            display({"image/png": image, "text/plain": name}, raw=True)


def render(figure: Figure, kind: str, dpi: int = DPI) -> bytes:
    """Return a figure as the bytes of a `png` or `svg` file."""
    file = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "llmdreamer"}):
        figure.savefig(file, format=kind, dpi=dpi, metadata=_METADATA[kind])
    return file.getvalue()


def _small_png(figure: Figure) -> bytes:
    """Return a figure as PNG with a palette, which has a third of the bytes."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(render(figure, "png", NOTEBOOK_DPI))) as image:
        image.convert("RGB").quantize(PALETTE_COLORS).save(file, "PNG", optimize=True)
    return file.getvalue()


def save_section(
    section: Section, folder: Path, kinds: tuple[str, ...] = ("png", "svg")
) -> list[Path]:
    """Write the figures as files of these kinds and the tables as CSV files; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in section.figures.items():
        for kind in kinds:
            path = folder / f"{name}.{kind}"
            path.write_bytes(render(figure, kind))
            written.append(path)
    for number, table in enumerate(section.tables, 1):
        path = folder / f"{_slug(section.title)}{'' if number == 1 else f'-{number}'}.csv"
        table.to_csv(path, index=False)
        written.append(path)
    return written


def _slug(title: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in title.lower()).split())
