"""What atoms have before anything is learned: nominal and bond charges, polarizabilities of free atoms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.electronegativity import PAULING
from farfield.atoms.neighbors import bond_vectors
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


#: Reach of a bond in sums of covalent radii: whole below the first number, gone above the second, and its largest (Å).
_BOND = (1.15, 1.5)
BOND_REACH = 3.0


def bond_charges(batch: AtomicBatch) -> Tensor:
    """Sum over an atom's bonds of how much more electronegative the neighbour is (Pauling units), shape (atoms,).

    A b_ij (χ_j − χ_i) of each bond, the simplest of the bond-charge increments that force fields use (J. Gasteiger and
    M. Marsili, Tetrahedron 36, 3219, 1980; T. A. Halgren, J. Comput. Chem. 17, 520, 1996): positive where electrons are
    drawn away, adding up to zero. b_ij falls smoothly from 1 to 0 between 1.15 and 1.5 sums of covalent radii (B.
    Cordero et al., Dalton Trans. 2832, 2008), or before 3 Å.

    Raises
    ------
    ValueError
        If the batch has no neighbours, or only nearer ones; for an element without electronegativity.
    """
    from ase.data import covalent_radii

    pairs = batch.neighbors
    if pairs is None or pairs.cutoff < BOND_REACH:
        reach = "none" if pairs is None else f"{pairs.cutoff:g} Å"
        raise ValueError(f"`batch.neighbors` reach {reach} but bond charges need {BOND_REACH:g} Å: use a larger cutoff")
    scale = torch.full((_TABLE,), torch.nan, dtype=torch.float64)
    scale[list(PAULING)] = torch.tensor(list(PAULING.values()), dtype=torch.float64)
    lengths = bond_vectors(batch).norm(dim=1)
    scale, radii = scale.to(lengths), torch.as_tensor(covalent_radii).to(lengths)
    electronegativity, radius = scale[batch.numbers], radii[batch.numbers]
    end = (_BOND[1] * (radius[pairs.i] + radius[pairs.j])).clamp(max=BOND_REACH)
    start = end * (_BOND[0] / _BOND[1])
    x = ((lengths - start) / (end - start)).clamp(0.0, 1.0)
    order = 1.0 - x**3 * (10.0 - x * (15.0 - 6.0 * x))
    gained = order * (electronegativity[pairs.j] - electronegativity[pairs.i])
    return torch.zeros_like(electronegativity).index_add(0, pairs.i, gained)


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
