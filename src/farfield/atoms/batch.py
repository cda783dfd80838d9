"""The batch of atomic systems that every part of farfield takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Neighbors:
    """A full list of neighbour pairs: each pair stands twice, once from either end, sorted by centre.

    The bond vector of a pair is ``positions[j] - positions[i] + shifts @ cell``.

    Attributes
    ----------
    i, j
        Index of the centre and of its neighbour, shape (pairs,).
    shifts
        Whole cell vectors added to atom ``j``, shape (pairs, 3), integers.
    cutoff
        Largest distance of a pair (Å).
    max_count
        Most neighbours that any one atom has. Known at construction, so that padded kernels need no device sync.
    """

    i: Int[Tensor, " pairs"]
    j: Int[Tensor, " pairs"]
    shifts: Int[Tensor, "pairs 3"]
    cutoff: float
    max_count: int

    @classmethod
    def of_pairs(
        cls,
        i: Int[Tensor, " pairs"],
        j: Int[Tensor, " pairs"],
        shifts: Int[Tensor, "pairs 3"],
        cutoff: float,
        *,
        is_sorted: bool = True,
    ) -> Neighbors:
        """Make a list of pairs; those that are not sorted by centre are put in that order."""
        if not is_sorted:
            order = i.argsort(stable=True)
            i, j, shifts = i[order], j[order], shifts[order]
        return cls(i, j, shifts, float(cutoff), max_count=int(torch.bincount(i).max()) if len(i) else 0)

    def to(self, device: torch.device | str | None = None) -> Neighbors:
        """Return the list on another device."""
        return dataclasses.replace(self, i=self.i.to(device), j=self.j.to(device), shifts=self.shifts.to(device))


@dataclass(frozen=True, eq=False)
class AtomicBatch:
    """Some systems of atoms, laid end to end; the atoms of a system are contiguous.

    ``positions`` and ``cell`` are the only differentiable leaves: bond vectors are made from them in torch, and forces
    and stress are the gradients in them.

    Attributes
    ----------
    positions
        Cartesian positions (Å), shape (atoms, 3).
    numbers
        Atomic numbers, shape (atoms,), int64.
    cell
        Cell vectors as rows (Å), shape (systems, 3, 3). Rows of non-periodic axes carry no meaning.
    pbc
        Periodicity along each cell vector, shape (systems, 3), bool.
    system
        Index of the system of each atom, shape (atoms,), int64, ascending.
    total_charge
        Total charge of each system (e), shape (systems,), where it is known.
    external_field
        Uniform external electric field (V/Å), shape (systems, 3), where there is one.
    neighbors
        Pairs of neighbours within a cutoff, where a short-range model needs them.
    """

    positions: Float[Tensor, "atoms 3"]
    numbers: Int[Tensor, " atoms"]
    cell: Float[Tensor, "systems 3 3"]
    pbc: Bool[Tensor, "systems 3"]
    system: Int[Tensor, " atoms"]
    total_charge: Float[Tensor, " systems"] | None = None
    external_field: Float[Tensor, "systems 3"] | None = None
    neighbors: Neighbors | None = None

    @property
    def n_atoms(self) -> int:
        """Number of atoms in all systems together."""
        return self.positions.shape[0]

    @property
    def n_systems(self) -> int:
        """Number of systems."""
        return self.cell.shape[0]

    @property
    def counts(self) -> Int[Tensor, " systems"]:
        """Number of atoms of each system."""
        return torch.bincount(self.system, minlength=self.n_systems)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> AtomicBatch:
        """Return the batch on another device or with floating-point tensors of another dtype."""

        def floats(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device=device, dtype=dtype)

        return dataclasses.replace(
            self,
            positions=self.positions.to(device=device, dtype=dtype),
            numbers=self.numbers.to(device),
            cell=self.cell.to(device=device, dtype=dtype),
            pbc=self.pbc.to(device),
            system=self.system.to(device),
            total_charge=floats(self.total_charge),
            external_field=floats(self.external_field),
            neighbors=None if self.neighbors is None else self.neighbors.to(device),
        )

    def replace(self, **changes: object) -> AtomicBatch:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def sum_over_atoms(self, values: Float[Tensor, "atoms *rest"]) -> Float[Tensor, "systems *rest"]:
        """Sum an atomic quantity over the atoms of each system, in float64."""
        total = values.new_zeros((self.n_systems, *values.shape[1:]), dtype=torch.float64)
        return total.index_add(0, self.system, values.double())


def concatenate(batches: Sequence[AtomicBatch]) -> AtomicBatch:
    """Lay several batches end to end into one.

    Optional fields must be given by all of the batches or by none.

    Raises
    ------
    ValueError
        If the list is empty, or if only some batches have an optional field.
    """
    if not batches:
        raise ValueError("`batches` is empty: give at least one batch to concatenate")

    def joined(name: str) -> Tensor | None:
        parts = [getattr(batch, name) for batch in batches]
        given = [part is not None for part in parts]
        if not any(given):
            return None
        if not all(given):
            raise ValueError(
                f"`{name}` is given by {sum(given)} of {len(batches)} batches, but must be given by all or by none: "
                "set it on every system"
            )
        return torch.cat(parts)

    atoms = [0]
    systems = [0]
    for batch in batches:
        atoms.append(atoms[-1] + batch.n_atoms)
        systems.append(systems[-1] + batch.n_systems)

    neighbors = None
    lists = [batch.neighbors for batch in batches]
    if all(pairs is not None for pairs in lists):
        known = [pairs for pairs in lists if pairs is not None]
        cutoffs = {pairs.cutoff for pairs in known}
        if len(cutoffs) > 1:
            raise ValueError(f"`neighbors` were made with different cutoffs {sorted(cutoffs)}: use one for all systems")
        neighbors = Neighbors(
            i=torch.cat([pairs.i + start for pairs, start in zip(known, atoms, strict=False)]),
            j=torch.cat([pairs.j + start for pairs, start in zip(known, atoms, strict=False)]),
            shifts=torch.cat([pairs.shifts for pairs in known]),
            cutoff=known[0].cutoff,
            max_count=max(pairs.max_count for pairs in known),
        )
    elif any(pairs is not None for pairs in lists):
        raise ValueError("`neighbors` are given by some of the batches only: make them for all or for none")

    return AtomicBatch(
        positions=torch.cat([batch.positions for batch in batches]),
        numbers=torch.cat([batch.numbers for batch in batches]),
        cell=torch.cat([batch.cell for batch in batches]),
        pbc=torch.cat([batch.pbc for batch in batches]),
        system=torch.cat([batch.system + start for batch, start in zip(batches, systems, strict=False)]),
        total_charge=joined("total_charge"),
        external_field=joined("external_field"),
        neighbors=neighbors,
    )
