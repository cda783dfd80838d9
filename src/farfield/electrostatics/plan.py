"""The plan: everything about a batch that is settled before the sum, in padded groups of like systems.

`farfield.electrostatics.planning` makes it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.boundary import Truncation, spread_beyond
from farfield.electrostatics.cutoff import self_factors, short_cell
from farfield.electrostatics.graphs import is_traced
from farfield.electrostatics.padding import Padding

_T = TypeVar("_T")


def moved_to(value: _T, device: torch.device | str) -> _T:
    """Copy a tensor, tuple, dictionary or frozen dataclass with all tensors in it on another device."""
    result: Any = value
    if isinstance(value, Tensor):
        result = value.to(device)
    elif isinstance(value, tuple):
        result = tuple(moved_to(item, device) for item in value)
    elif isinstance(value, dict):
        result = {key: moved_to(item, device) for key, item in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: moved_to(getattr(value, field.name), device) for field in dataclasses.fields(value)}
        result = dataclasses.replace(value, **fields)
    return result


class Seen:
    """A tensor as it was when it was seen, to know it again without looking at its values, which waits for the device.

    It is known by its memory, which is kept from being used again, and by how often it has been changed in place.
    """

    def __init__(self, tensor: Tensor) -> None:
        # The same memory and count of changes, without the graph.
        self._tensor = tensor.detach()
        self._values = self._tensor.clone()
        # What is made in inference mode counts no changes.
        self._version = None if tensor.is_inference() else tensor._version

    def is_still(self, tensor: Tensor) -> bool:
        """Whether a tensor is surely the one that was seen, unchanged."""
        mine = self._tensor
        return (
            self._version is not None
            and not tensor.is_inference()
            and tensor.device == mine.device
            and tensor.data_ptr() == mine.data_ptr()
            and tensor.dtype == mine.dtype
            and tensor.shape == mine.shape
            and tensor.stride() == mine.stride()
            and tensor._version == mine._version == self._version
            # Memory of the CPU may be changed from outside of torch; to look at it costs no wait.
            and (tensor.device.type != "cpu" or torch.equal(self._values, tensor))
        )

    def equals(self, tensor: Tensor) -> bool:
        """Whether a tensor has the values of the one that was seen, on the same device."""
        return tensor.device == self._values.device and torch.equal(self._values, tensor)


@dataclass(frozen=True, eq=False)
class OpenGroup:
    """Open systems that are summed together. ``smearing`` has the shape (members,)."""

    padding: Padding
    smearing: Float[Tensor, " members"]


@dataclass(frozen=True, eq=False)
class EwaldGroup:
    """Systems that are summed together in reciprocal space, periodic along the same number of axes.

    Attributes
    ----------
    padding
        Their atoms.
    smearing
        σ (Å), shape (members,).
    basis
        Integer matrices to reduced lattice vectors, shape (members, 3, 3).
    ranges
        For each order of multipoles (charges, dipoles, quadrupoles): the largest index along each axis of the
        reciprocal vectors inside the cutoff.
    cutoffs
        For each order, σ|k| where the sum ends in a large cell, shape (3, members).
    self_factors
        For each order, the shares of the self-energy of charges, dipoles, quadrupoles in such a sum, shape (3, members,
        3).
    short_vectors
        Indices of the lattice vectors that move this cutoff in a short cell (see `farfield.electrostatics.cutoff`),
        shape (vectors, 3); None where all cells are large.
    truncation
        How the kernel ends for systems that are open along some axes; None for those periodic along all.
    """

    padding: Padding
    smearing: Float[Tensor, " members"]
    basis: Float[Tensor, "members 3 3"]
    ranges: tuple[tuple[int, int, int], ...]
    cutoffs: Float[Tensor, "3 members"]
    self_factors: Float[Tensor, "3 members 3"]
    short_vectors: Float[Tensor, "vectors 3"] | None = None
    truncation: Truncation | None = None

    def summed_to(self, order: int, cell: Tensor) -> Tensor:
        """σ|k| where the sum for multipoles up to an order ends in cells, padded along open directions, (members,)."""
        return short_cell(self.cutoffs[order], cell.double(), self.smearing, self.short_vectors)

    def self_factors_of(self, order: int, cutoff: Tensor) -> Tensor:
        """Shares of the self-energy in a sum that ends at what `summed_to` gave, shape (members, 3)."""
        return self.self_factors[order] if self.short_vectors is None else self_factors(cutoff)


@dataclass(frozen=True, eq=False)
class MeshGroup:
    """One system that is summed on a mesh.

    Attributes
    ----------
    padding
        Its atoms, as a block of one member.
    smearing
        σ (Å), shape (1,).
    basis
        Integer matrix to reduced lattice vectors, shape (1, 3, 3).
    cell
        Cell that it was prepared for, padded where it is open (Å), float64, shape (1, 3, 3).
    shapes, orders
        For each order of multipoles (charges, dipoles, quadrupoles) the mesh and the order of its splines.
    truncation
        How the kernel ends for a system that is open along some axes; None for one periodic along all.
    kernels
        Influence functions made so far for ``cell``, by order of multipoles and dtype.
    """

    padding: Padding
    smearing: Float[Tensor, " one"]
    basis: Float[Tensor, "one 3 3"]
    cell: Float[Tensor, "one 3 3"]
    shapes: tuple[tuple[int, int, int], ...]
    orders: tuple[int, ...]
    truncation: Truncation | None
    kernels: dict[tuple[int, torch.dtype], Tensor] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class CoulombPlan:
    """What `Coulomb.prepare` finds out about a batch; see there.

    Attributes
    ----------
    n_atoms, n_systems
        Of the batch it was made for.
    smearing
        σ of each system (Å), float64, shape (systems,).
    groups
        Groups of systems summed directly, by Ewald and on a mesh.
    order
        Position of each atom of the batch in the concatenation of the groups, shape (atoms,); None where it is the
        same.
    gap
        Room to the images along open directions (Å); None where a truncated kernel keeps them out.
    cell
        The cells it was made for.
    n_ranks
        Number of ranks that hold the atoms of the systems; 1 without a process group.
    """

    n_atoms: int
    n_systems: int
    smearing: Float[Tensor, " systems"]
    groups: tuple[OpenGroup | EwaldGroup | MeshGroup, ...]
    order: Int[Tensor, " atoms"] | None
    gap: float | None = None
    cell: Seen | None = None
    n_ranks: int = 1

    def is_of(self, cell: Tensor) -> bool:
        """Whether cells are surely those that the plan was made for; no device is waited for."""
        return self.cell is not None and not is_traced(cell) and self.cell.is_still(cell)

    def has_room(self, batch: AtomicBatch, ranks: dist.ProcessGroup | None = None) -> bool:
        """Whether slabs, wires and clusters of a batch still fit the padding that was made for them."""
        for group in self.groups:
            if isinstance(group, OpenGroup) or group.truncation is None:
                continue
            padding = group.padding
            cell = batch.cell.index_select(0, padding.systems)
            positions = padding.gather(batch.positions)
            if spread_beyond(positions, padding.mask, cell, group.truncation, ranks).amax() > 0:
                return False
        return True

    def to(self, device: torch.device | str) -> CoulombPlan:
        """Return the plan on another device."""
        return moved_to(self, device)
