"""Fragments of systems, for labels that say what fragments do to each other.

A frame with the label ``interaction_energy`` or ``interaction_forces`` (of the whole, less those of its fragments, each
alone at the same geometry) names in its array ``fragment`` the fragment of each atom (0, 1, …), and in
``info["fragment_charges"]`` the total charge of each, where the model is to know total charges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.atoms.neighbors import with_neighbors

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True, eq=False)
class Fragments:
    """The fragments of some systems of a batch, each as a system of its own.

    Attributes
    ----------
    batch
        The fragments.
    atoms
        For each of their atoms its index in the batch of the whole systems, shape (atoms of fragments,).
    systems
        For each fragment the index of its system there, shape (fragments,).
    """

    batch: AtomicBatch
    atoms: Int[Tensor, " fragment_atoms"]
    systems: Int[Tensor, " fragments"]

    def to(self, device: torch.device | str | None = None) -> Fragments:
        """Return the fragments on another device."""
        return Fragments(self.batch.to(device), self.atoms.to(device), self.systems.to(device))

    def with_neighbors(self, cutoff: float) -> Fragments:
        """Return the fragments with neighbours within ``cutoff`` (Å); lists that are there already are kept."""
        return dataclasses.replace(self, batch=with_neighbors(self.batch, cutoff))

    def subtracted(self, whole: Tensor, apart: Tensor, *, per_atom: bool) -> Tensor:
        """Subtract what the fragments (or their atoms) have alone, in rows, from what the whole systems have."""
        return whole.index_add(0, self.atoms if per_atom else self.systems, apart, alpha=-1)


def fragments_of(atoms: Atoms, whole: AtomicBatch, where: str) -> Fragments:
    """Take a system apart as its array ``fragment`` says.

    Parameters
    ----------
    atoms
        The structure.
    whole
        The batch of this one system; its total charge says whether those of the fragments are needed.
    where
        What to call it in errors.

    Raises
    ------
    ValueError
        If the array is missing or does not number two or more fragments 0, 1, …, or total charges are missing, not one
        for each fragment, or do not add up.
    """
    if "fragment" not in atoms.arrays:
        raise ValueError(
            f"{where}: has an interaction energy or forces but no array 'fragment': give the number of each atom's "
            "fragment, or leave these labels out (data.columns, null; `quantities` of an evaluation)"
        )
    fragment = np.asarray(atoms.arrays["fragment"])
    numbers = np.unique(fragment)
    if fragment.shape != (len(atoms),) or len(numbers) < 2 or not np.array_equal(numbers, np.arange(len(numbers))):
        raise ValueError(
            f"{where}: the array 'fragment' has the shape {fragment.shape} and the values {numbers[:8].tolist()}, but "
            f"must have the shape {(len(atoms),)} and number two or more fragments from 0 without a gap"
        )
    order = np.argsort(fragment, kind="stable")
    charges = None
    if whole.total_charge is not None:
        stated = atoms.info.get("fragment_charges", ())
        try:
            given = np.asarray(stated, dtype=np.float64).reshape(-1)
        except (TypeError, ValueError):
            given = np.full(1, np.nan)
        total = float(whole.total_charge[0])
        if len(given) != len(numbers) or not abs(given.sum() - total) <= 1e-6:
            raise ValueError(
                f"{where}: info['fragment_charges'] is {stated!r}, but must give the total charge (e) of each of "
                f"the {len(numbers)} fragments, together {total:g}"
            )
        charges = torch.tensor(given, dtype=whole.total_charge.dtype)
    index = torch.from_numpy(order.astype(np.int64))
    n = len(numbers)
    batch = AtomicBatch(
        positions=whole.positions[index],
        numbers=whole.numbers[index],
        cell=whole.cell.expand(n, 3, 3).contiguous(),
        pbc=whole.pbc.expand(n, 3).contiguous(),
        system=torch.from_numpy(fragment[order].astype(np.int64)),
        total_charge=charges,
    )
    return Fragments(batch, index, torch.zeros(n, dtype=torch.int64))


def join_fragments(parts: Sequence[tuple[AtomicBatch, Fragments | None]]) -> Fragments | None:
    """Lay the fragments of several batches end to end, as the batches are; None where there are none."""
    found, atoms, systems = [], 0, 0
    for batch, fragments in parts:
        if fragments is not None:
            found.append(Fragments(fragments.batch, fragments.atoms + atoms, fragments.systems + systems))
        atoms += batch.n_atoms
        systems += batch.n_systems
    if not found:
        return None
    return Fragments(
        concatenate([one.batch for one in found]),
        torch.cat([one.atoms for one in found]),
        torch.cat([one.systems for one in found]),
    )
