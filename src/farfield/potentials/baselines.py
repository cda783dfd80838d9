"""What atoms have before anything is learned: nominal and bond charges, polarizabilities of free atoms."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.electronegativity import PAULING
from farfield.atoms.neighbors import bond_vectors, neighbors_within
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


#: Bonds are whole below the first number of sums of covalent radii and gone above the second, or at `BOND_REACH` (Å).
_BOND = (1.15, 1.5)
BOND_REACH = 3.0


@functools.lru_cache(maxsize=16)
def _bond_tables(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Electronegativities (NaN where there is none) and covalent radii (Å) by atomic number."""
    from ase.data import covalent_radii

    with torch.inference_mode(False):  # made in inference mode, autograd could not keep them
        scale = torch.full((_TABLE,), torch.nan, dtype=dtype)
        scale[list(PAULING)] = torch.tensor(list(PAULING.values()), dtype=dtype)
        return scale.to(device), torch.as_tensor(covalent_radii, dtype=dtype, device=device)


def bond_increments(batch: AtomicBatch) -> Float[Tensor, " atoms"]:
    """By how much an atom's bonded neighbours are more electronegative than itself: Σ_j b_ij (χ_j − χ_i).

    The simplest bond-charge increments, as force fields use them (J. Gasteiger and M. Marsili, Tetrahedron 36, 3219,
    1980; T. A. Halgren, J. Comput. Chem. 17, 520, 1996), with Pauling's electronegativities: positive where electrons
    are drawn away, and adding up to zero. The order b_ij falls smoothly from 1 to 0 between 1.15 and 1.5 sums of
    covalent radii (B. Cordero et al., Dalton Trans. 2832, 2008), or earlier, to end at 3 Å.

    Parameters
    ----------
    batch
        The systems, with neighbours within 3 Å.

    Returns
    -------
    Tensor
        Shape (atoms,), Pauling units, differentiable in positions and cell.

    Raises
    ------
    ValueError
        If the batch has no neighbours, or only nearer ones; if an element has no electronegativity.
    """
    pairs = neighbors_within(batch, BOND_REACH, f"`bond_charges` need {BOND_REACH:g} Å")
    lengths = bond_vectors(batch).norm(dim=1)
    scale, radii = _bond_tables(lengths.dtype, lengths.device)
    electronegativity, radius = scale[batch.numbers], radii[batch.numbers]
    missing = torch.isnan(electronegativity)
    if bool(missing.any()):
        raise ValueError(
            f"`bond_charges`: atomic numbers {batch.numbers[missing].unique().tolist()} have no electronegativity on "
            "Pauling's scale: leave the option out"
        )
    end = (_BOND[1] * (radius[pairs.i] + radius[pairs.j])).clamp(max=BOND_REACH)
    x = ((lengths / end - _BOND[0] / _BOND[1]) / (1.0 - _BOND[0] / _BOND[1])).clamp(0.0, 1.0)
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
