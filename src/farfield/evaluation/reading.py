"""Structures with labels, from wherever they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from farfield.datasets.dataset import Dataset, label_structures, read_set, select_frames
from farfield.datasets.quantities import Columns, Conventions, Units

if TYPE_CHECKING:
    from ase import Atoms

#: Info key of the total charge (e), used where every structure has it.
TOTAL_CHARGE_KEY = "total_charge"


def read_labelled(
    data: str | Path | Sequence[Atoms],
    *,
    columns: Columns | None = None,
    units: Units | None = None,
    conventions: Conventions | None = None,
    total_charge: str | None = "auto",
    first: int | None = None,
    last: int | None = None,
    fragments: bool = True,
) -> Dataset:
    """Read structures and labels from a registry name, a file or ASE structures, in float64.

    Parameters
    ----------
    data
        Registry name, path, or ASE structures.
    columns, units, conventions
        As in `farfield.datasets.dataset.load_dataset`.
    total_charge
        Info key of the total charge; None to leave it unknown; ``"auto"`` takes ``total_charge`` where every structure
        has it.
    first, last
        How many structures to keep from the front or the back, as `farfield.datasets.dataset.select_frames` does.
    fragments
        Read interaction energies and forces, too, and the fragments that they are about.

    Raises
    ------
    FileNotFoundError, ValueError
        If the data are not there, a structure is unsound or none is left.
    """
    name = "structures"
    if isinstance(data, str | Path):
        name = str(data)
        structures, columns, units = read_set(data, columns, units)
    else:
        structures = list(data)
        if not structures:
            raise ValueError("`data` is an empty list: give at least one structure")
    if first is not None or last is not None:
        kept = select_frames([atoms.info for atoms in structures], first=first, last=last, name=name)
        structures = [structures[i] for i in kept]
    if total_charge == "auto":
        total_charge = TOTAL_CHARGE_KEY if all(TOTAL_CHARGE_KEY in atoms.info for atoms in structures) else None
    return label_structures(
        structures,
        columns=columns,
        units=units,
        conventions=conventions,
        total_charge=total_charge,
        fragments=fragments,
        name=name,
    )
