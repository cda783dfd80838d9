"""What the checks of data look at, and what they find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from farfield.datasets.dataset import Sample

#: Units in which forces are met although another one was stated.
FORCE_UNITS = ("kcal/mol/Å", "kJ/mol/Å", "Ha/bohr", "Ry/bohr", "Ha/Å", "kcal/mol/bohr", "meV/Å")


@dataclass(frozen=True)
class Finding:
    """Something that a check found.

    Attributes
    ----------
    level
        ``"warning"``: contradicts physics or itself; ``"note"``: good to know.
    topic
        One word: ``units``, ``stress``, ``duplicates``, …
    message
        What was found, with numbers, and what to do.
    frames
        Indices of the frames concerned, counted from 0 in the file, where it concerns single ones.
    """

    level: Literal["warning", "note"]
    topic: str
    message: str
    frames: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class View:
    """The frames that are looked at.

    Attributes
    ----------
    samples
        One system each.
    info
        What the file says beside.
    index
        Index of each frame in the file.
    """

    samples: list[Sample]
    info: list[dict[str, Any]]
    index: list[int]

    def with_label(self, *names: str) -> list[int]:
        """Positions of the frames that have all of these labels."""
        return [n for n, sample in enumerate(self.samples) if all(name in sample.labels for name in names)]

    def frames(self, positions: Sequence[int], most: int = 12) -> str:
        """Name some frames by their index in the file."""
        shown = [str(self.index[n]) for n in positions[:most]]
        more = f" and {len(positions) - most} more" if len(positions) > most else ""
        return f"frame{'s' if len(positions) > 1 else ''} {', '.join(shown)}{more}"

    def formula(self, position: int) -> tuple[tuple[int, int], ...]:
        """Composition of a frame: pairs of atomic number and count."""
        numbers = self.samples[position].batch.numbers.numpy()
        return tuple((int(z), int(n)) for z, n in zip(*np.unique(numbers, return_counts=True), strict=True))

    def numbers_of(self, positions: Sequence[int]) -> tuple[int, ...]:
        """Return indices in the file."""
        return tuple(self.index[n] for n in positions)
