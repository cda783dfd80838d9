"""What benchmarks of several trainings share: rows that are kept as they come, and what constant charges explain."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from farfield.files import write_text

Row = dict[str, float]


def gather(runs: Iterable[tuple[str, str, Callable[[], Row]]], path: Path | None) -> None:
    """Make rows of a table, print them, and write all to a JSON file after each; what the file has is not made again.

    Parameters
    ----------
    runs
        Group, name and maker of each row.
    path
        The JSON file, or None.
    """
    results: dict[str, dict[str, Row]] = {}
    if path is not None and path.exists():
        results = json.loads(path.read_text(encoding="utf-8"))
    for group, name, make in runs:
        rows = results.setdefault(group, {})
        if name not in rows:
            rows[name] = make()
        print(group, name, {key: round(value, 4) for key, value in rows[name].items()}, flush=True)
        if path is not None:
            write_text(path, json.dumps(results, indent=2) + "\n")


def mean_charges(numbers: np.ndarray, born: np.ndarray) -> dict[int, float]:
    """One charge (e) of each element that fits Born charges, shape (atoms, 3, 3), best."""
    return {z: float(born[numbers == z].trace(axis1=1, axis2=2).mean() / 3.0) for z in sorted(set(numbers.tolist()))}
