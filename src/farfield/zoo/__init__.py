"""Shipped models, one ``NAME.ff`` file each; `farfield.load("NAME")` opens them and ``farfield models`` lists them."""

from __future__ import annotations

from pathlib import Path


def names() -> list[str]:
    """Names of the shipped models, in alphabetical order."""
    return sorted(file.stem for file in Path(__file__).parent.glob("*.ff"))


def path(name: str) -> Path:
    """File of a shipped model.

    Raises
    ------
    ValueError
        If no model of this name is shipped; the error lists those that are.
    """
    if name not in names():
        raise ValueError(f"Unknown model {name!r}. Shipped models are: {', '.join(names()) or 'none'}")
    return Path(__file__).parent / f"{name}.ff"
