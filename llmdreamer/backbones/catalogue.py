"""The sizes of every backbone: its published checkpoint, and its shape when trained from scratch."""

from __future__ import annotations

from dataclasses import dataclass

from llmdreamer.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Shape:
    """One size of one family. `checkpoint` is a name on the Hugging Face hub, if one is published."""

    width: int
    layers: int
    heads: int
    positions: int  # length of a table of learned positions; 0 where positions are not learned
    checkpoint: str | None = None


CATALOGUE: dict[str, dict[str, Shape]] = {
    "gpt2": {
        "XS": Shape(128, 2, 4, 128),
        "S": Shape(768, 12, 12, 1024, "openai-community/gpt2"),
        "M": Shape(1024, 24, 16, 1024, "openai-community/gpt2-medium"),
        "L": Shape(1280, 36, 20, 1024, "openai-community/gpt2-large"),
    },
    # A GRU of width D has 6 D² weights: these widths give it gpt2's count (12 D² a layer) to 1%.
    "gru": {
        "XS": Shape(256, 1, 1, 0),
        "S": Shape(3764, 1, 1, 0),
        "M": Shape(7096, 1, 1, 0),
        "L": Shape(10864, 1, 1, 0),
    },
}


def shape_of(name: str, size: str) -> Shape:
    """The shape of a backbone at a size.

    Raises:
        ConfigError: if there is no such backbone, or it has no such size.
    """
    if name not in CATALOGUE:
        raise ConfigError(
            f"backbone={name}: choose from {', '.join(CATALOGUE)}{did_you_mean(name, CATALOGUE)}"
        )
    sizes = CATALOGUE[name]
    if size not in sizes:
        raise ConfigError(f"backbone={name} has no size {size}; choose from {', '.join(sizes)}")
    return sizes[size]
