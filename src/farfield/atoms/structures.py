"""Reading and checking structures, and the way from ASE's ``Atoms`` to an `AtomicBatch` and back."""

from __future__ import annotations

import gzip
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from farfield.atoms.batch import AtomicBatch, Neighbors, concatenate

if TYPE_CHECKING:
    from ase import Atoms


def read_structures(path: str | Path) -> list[Atoms]:
    """Read all structures of a file with ASE (extended XYZ, also gzipped, and whatever else ASE knows).

    Parameters
    ----------
    path
        File to read.

    Returns
    -------
    list of ase.Atoms
        At least one structure.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read as structures, or holds none.
    """
    import ase.io

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r}: check the path of the structures to read")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a directory, but must be one file of structures, such as extended XYZ")
    try:
        if path.name.endswith((".xyz.gz", ".extxyz.gz")):
            # ASE seeks from frame to frame, which in a gzipped file means to unpack it again and again.
            with gzip.open(path, "rt", encoding="utf-8") as file:
                structures = ase.io.read(io.StringIO(file.read()), index=":", format="extxyz")
        else:
            # A trailing suffix other than ASE knows (".extxyz.tmp") must not turn into a guess by content.
            structures = ase.io.read(str(path), index=":")
    except Exception as error:  # ASE's readers raise anything from KeyError to UnicodeDecodeError
        raise ValueError(
            f"{str(path)!r} cannot be read as structures ({type(error).__name__}: {error}): give a file that "
            "ase.io.read understands, for example extended XYZ (.extxyz, .extxyz.gz)"
        ) from error
    if not isinstance(structures, list):
        structures = [structures]
    if not structures:
        raise ValueError(f"{str(path)!r} holds no structures: give a file with at least one")
    return structures


def check_structure(atoms: Atoms, name: str = "structure") -> None:
    """Refuse a structure that no model could take.

    Parameters
    ----------
    atoms
        The structure.
    name
        What to call it in the error.

    Raises
    ------
    ValueError
        If positions or cell are not finite, a periodic axis has no cell vector, the vectors of the periodic axes are
        linearly dependent, or an atom has no element (number 0 or beyond 118).
    """
    positions = np.asarray(atoms.positions)
    bad = ~np.isfinite(positions).all(axis=1)
    if bad.any():
        first = int(np.argmax(bad))
        raise ValueError(f"{name}: the position of atom {first} is {positions[first].tolist()}, but must be finite (Å)")
    numbers = np.asarray(atoms.numbers)
    unknown = (numbers < 1) | (numbers > 118)
    if unknown.any():
        first = int(np.argmax(unknown))
        raise ValueError(
            f"{name}: atom {first} has atomic number {int(numbers[first])}, but must be a known element (1 to 118)"
        )
    cell = np.asarray(atoms.cell[:])
    if not np.isfinite(cell).all():
        raise ValueError(f"{name}: the cell is {cell.tolist()}, but must be finite (Å)")
    lengths = np.linalg.norm(cell, axis=1)
    for axis in range(3):
        if atoms.pbc[axis] and lengths[axis] < 1e-8:
            raise ValueError(
                f"{name}: axis {axis} is periodic, but its cell vector is zero: "
                "give the cell, or set pbc to False along this axis"
            )
    periodic = cell[np.asarray(atoms.pbc, dtype=bool)]
    if len(periodic) > 1:
        directions = periodic / np.linalg.norm(periodic, axis=1, keepdims=True)
        if np.linalg.svd(directions, compute_uv=False)[-1] < 1e-6:
            raise ValueError(
                f"{name}: the cell vectors of the periodic axes {periodic.tolist()} are linearly dependent"
            )


def _charge_of(atoms: Atoms, total_charge: str | float, name: str) -> float:
    if not isinstance(total_charge, str):
        return float(total_charge)
    if total_charge not in atoms.info:
        raise ValueError(
            f"{name}: `total_charge` is to be read from info[{total_charge!r}], but the structure has only "
            f"{sorted(atoms.info)}: add the key, or pass total_charge=None"
        )
    return float(atoms.info[total_charge])


def from_ase(
    atoms: Atoms | Sequence[Atoms],
    dtype: torch.dtype = torch.float64,
    total_charge: str | float | None = None,
) -> AtomicBatch:
    """Make a batch of one or several ASE structures.

    Parameters
    ----------
    atoms
        One structure or a list of them (Å).
    dtype
        Floating-point type of the batch.
    total_charge
        Total charge (e): a number, or the key of ``atoms.info`` that holds it. By default it is left unknown.

    Returns
    -------
    AtomicBatch
        The systems in their order, without neighbours.

    Raises
    ------
    ValueError
        If a structure is unsound (see `check_structure`), or lacks the info key.
    """
    from ase import Atoms as AseAtoms

    structures = [atoms] if isinstance(atoms, AseAtoms) else list(atoms)
    batches = []
    for index, structure in enumerate(structures):
        name = "structure" if len(structures) == 1 else f"structure {index}"
        check_structure(structure, name)
        charge = None if total_charge is None else _charge_of(structure, total_charge, name)
        batches.append(
            AtomicBatch(
                positions=torch.tensor(np.asarray(structure.positions), dtype=dtype),
                numbers=torch.tensor(np.asarray(structure.numbers), dtype=torch.int64),
                cell=torch.tensor(np.asarray(structure.cell[:]), dtype=dtype)[None],
                pbc=torch.tensor(np.asarray(structure.pbc), dtype=torch.bool)[None],
                system=torch.zeros(len(structure), dtype=torch.int64),
                total_charge=None if charge is None else torch.tensor([charge], dtype=dtype),
            )
        )
    return batches[0] if len(batches) == 1 else concatenate(batches)


def to_ase(batch: AtomicBatch) -> list[Atoms]:
    """Turn a batch into ASE structures, one for each system; a total charge goes to ``info['total_charge']``."""
    from ase import Atoms as AseAtoms

    counts = batch.counts.tolist()
    positions = batch.positions.detach().cpu().double().split(counts)
    numbers = batch.numbers.cpu().split(counts)
    cells = batch.cell.detach().cpu().double().numpy()
    structures = []
    for index in range(batch.n_systems):
        atoms = AseAtoms(
            numbers=numbers[index].numpy(),
            positions=positions[index].numpy(),
            cell=cells[index],
            pbc=batch.pbc[index].cpu().numpy(),
        )
        if batch.total_charge is not None:
            atoms.info["total_charge"] = float(batch.total_charge[index])
        structures.append(atoms)
    return structures


def split_systems(batch: AtomicBatch) -> list[AtomicBatch]:
    """Split a batch into batches of one system each, neighbours included: the inverse of `concatenate`."""
    counts = batch.counts.tolist()
    parts = []
    start = 0
    pairs = batch.neighbors
    owner = None if pairs is None else batch.system[pairs.i]
    for index, count in enumerate(counts):
        atoms = slice(start, start + count)
        one = slice(index, index + 1)
        neighbors = None
        if pairs is not None and owner is not None:
            mine = owner == index
            i, j = pairs.i[mine] - start, pairs.j[mine] - start
            neighbors = Neighbors.of_pairs(i, j, pairs.shifts[mine], pairs.cutoff)
        parts.append(
            AtomicBatch(
                positions=batch.positions[atoms],
                numbers=batch.numbers[atoms],
                cell=batch.cell[one],
                pbc=batch.pbc[one],
                system=torch.zeros_like(batch.system[atoms]),
                total_charge=None if batch.total_charge is None else batch.total_charge[one],
                external_field=None if batch.external_field is None else batch.external_field[one],
                neighbors=neighbors,
            )
        )
        start += count
    return parts
