"""What atoms have before anything is learned: nominal charges and polarizabilities of free atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from farfield.units import BOHR, COULOMB_CONSTANT

#: Length of tables by atomic number.
_TABLE = 119


def charge_table(charges: Mapping[int | str, float]) -> tuple[dict[int, float], Tensor]:
    """Nominal charges by atomic number, as a dictionary and as a table (119,) with zeros for other elements.

    Parameters
    ----------
    charges
        Charge (e) by element symbol or atomic number, such as ``{"Ba": 2, "Ti": 4, "O": -2}``.

    Raises
    ------
    ValueError
        If a key is no element.
    """
    by_number = {_number(element): float(value) for element, value in charges.items()}
    table = torch.zeros(_TABLE, dtype=torch.float64)
    for number, value in by_number.items():
        table[number] = value
    return by_number, table


def free_atom_table() -> Tensor:
    """Polarizabilities of free atoms (e²·Å²/eV) by atomic number, shape (119,); NaN for elements that are not listed.

    From the table of ASE, ``ase.calculators.vdwcorrection.vdWDB_alphaC6``: X. Chu and A. Dalgarno, J. Chem. Phys. 121,
    4083 (2004), and V. G. Ruiz et al., Phys. Rev. Lett. 108, 146103 (2012), in Bohr³.
    """
    from ase.calculators.vdwcorrection import vdWDB_alphaC6
    from ase.data import atomic_numbers

    table = torch.full((_TABLE,), torch.nan, dtype=torch.float64)
    for symbol, values in vdWDB_alphaC6.items():
        polarizability, _ = cast("Sequence[float]", values)
        table[atomic_numbers[symbol]] = polarizability * BOHR**3 / COULOMB_CONSTANT
    return table


def look_up_free_atoms(table: Tensor, numbers: Tensor) -> Tensor:
    """Polarizabilities of free atoms (e²·Å²/eV), shape (atoms,).

    Raises
    ------
    ValueError
        If an element is not in the table; names it.
    """
    values = table[numbers]
    missing = torch.isnan(values)
    if bool(missing.any()):
        raise ValueError(
            f"`free_atom_polarizabilities`: there is none for atomic numbers {numbers[missing].unique().tolist()} in "
            "the tables of Chu and Dalgarno (2004) and Ruiz et al. (2012): switch it off"
        )
    return values


def _number(element: int | str) -> int:
    if isinstance(element, str) and not element.isdigit():
        from ase.data import atomic_numbers

        if element not in atomic_numbers:
            raise ValueError(f"`nominal_charges` names {element!r}, which is no element symbol")
        return int(atomic_numbers[element])
    number = int(element)
    if not 1 <= number < _TABLE:
        raise ValueError(f"`nominal_charges` names {element!r}, which is no atomic number")
    return number
