"""Planning: which systems of a batch are summed together, by which sum, to which cutoff or on which mesh.

A batch may mix open molecules and periodic cells of any size. Systems of one kind and of similar cost are put in one
group and padded to its largest, so that the sums run over whole groups at once; a group costs at most a small multiple
of what its systems need.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.boundary import Truncation, make_truncation
from farfield.electrostatics.cost import MeshSize, ewald_cost, mesh_size, open_cost
from farfield.electrostatics.cutoff import reduced_cutoff, self_factors, short_cell, short_vectors
from farfield.electrostatics.distributed import ranks_of
from farfield.electrostatics.lattice import reduced_bases
from farfield.electrostatics.padding import Census, Padding, make_padding, take_census
from farfield.electrostatics.plan import CoulombPlan, EwaldGroup, MeshGroup, OpenGroup, Seen, moved_to
from farfield.electrostatics.spreading import LEAST_COMPILED

#: A system joins a group while its padded cost stays below this multiple of its own.
_WASTE = 2.5


def _group_by_cost(costs: np.ndarray, measures: np.ndarray) -> list[list[int]]:
    """Sort systems into groups whose padded cost stays within `_WASTE` of each member's own.

    ``measures`` (systems, m) are the lengths that are padded; the cost of a padded system is the product of the
    largest.
    """
    groups: list[list[int]] = []
    # Plain numbers: batches are short, and numpy's calls would cost more than the arithmetic.
    lengths, cost_of = measures.tolist(), costs.tolist()
    largest: list[float] = []
    cheapest = 0.0
    for index in np.argsort(-costs, kind="stable").tolist():
        if cost_of[index] == 0:
            continue
        padded = [max(pair) for pair in zip(largest or lengths[index], lengths[index], strict=True)]
        if groups and math.prod(padded) <= _WASTE * min(cheapest, cost_of[index]):
            groups[-1].append(index)
            largest, cheapest = padded, min(cheapest, cost_of[index])
        else:
            groups.append([index])
            largest, cheapest = lengths[index], cost_of[index]
    return [sorted(group) for group in groups]


@dataclass(frozen=True, eq=False)
class _Reciprocal:
    """Sizes of the reciprocal sums of some systems with the same number of periodic axes."""

    systems: np.ndarray
    cells: Tensor
    truncation: Truncation | None
    basis: np.ndarray
    lengths: np.ndarray
    volumes: np.ndarray
    cutoffs: Tensor
    ranges: np.ndarray


def make_plan(
    batch: AtomicBatch,
    smearing: np.ndarray,
    accuracy: float,
    method: str = "auto",
    gap: float | None = None,
    order: int = 0,
    charged: np.ndarray | None = None,
    ranks: dist.ProcessGroup | None = None,
) -> CoulombPlan:
    """Group the systems of a checked batch and size their sums.

    Parameters
    ----------
    batch
        The batch; its values must have been checked.
    smearing
        σ of each system (Å), shape (systems,).
    accuracy
        Relative RMS force error.
    method
        ``"auto"``, ``"open"``, ``"ewald"`` or ``"mesh"``; see `Coulomb`.
    gap
        Room (Å) to the images along open directions, for an interaction so short that no truncated kernel is needed.
    order
        Highest multipoles for which ``"auto"`` takes the fastest sum.
    charged
        Whether charges lead in each system, shape (systems,), see `Coulomb.prepare`; None: in all.
    ranks
        The process group whose ranks hold the atoms. All of them come to the same groups and sizes.
    """
    device = batch.positions.device
    census = take_census(batch, ranks)
    counts = census.total
    charged = np.full(len(counts), True) if charged is None else charged
    pbc = batch.pbc.cpu().numpy()
    dimensions = pbc.sum(1)

    opened: list[int] = []
    groups: list[OpenGroup | EwaldGroup | MeshGroup] = []
    meshed: list[OpenGroup | EwaldGroup | MeshGroup] = []
    for dimension in (3, 2, 1, 0):
        alike = np.flatnonzero((dimensions == dimension) & (counts > 0))
        if dimension == 0 and method in ("auto", "open"):
            direct = np.full(len(alike), True) if method == "open" else counts[alike] < LEAST_COMPILED
            opened.extend(alike[direct].tolist())
            alike = alike[~direct]
        if not len(alike):
            continue
        sizes = _reciprocal_sizes(batch, alike, census, pbc, smearing, accuracy, gap, ranks)
        by_ewald = []
        for index, system in enumerate(alike.tolist()):
            atoms, sigma = int(counts[system]), float(smearing[system])
            mesh_of = functools.partial(_mesh_of, sizes, index, accuracy, sigma, atoms, bool(charged[system]))
            choice = method if method != "auto" else _cheapest(sizes, index, atoms, mesh_of, order)
            if choice == "open":
                opened.append(system)
            elif choice == "ewald":
                by_ewald.append(index)
            else:
                meshes = [mesh_of(degree) for degree in range(3)]
                meshed.append(_mesh_group(sizes, index, meshes, make_padding([system], census, device), smearing))
        groups.extend(_ewald_groups(sizes, by_ewald, census, smearing, device))

    open_counts = np.zeros(len(counts))
    open_counts[opened] = counts[opened]
    direct_groups: list[OpenGroup | EwaldGroup | MeshGroup] = [
        OpenGroup(
            padding=make_padding(members, census, device, with_others=True),
            smearing=torch.from_numpy(smearing[members]).to(device),
        )
        for members in _group_by_cost(open_counts**2, np.stack([open_counts, open_counts], 1))
    ]
    groups = [*direct_groups, *groups, *meshed]
    laid_out = torch.cat([group.padding.atoms for group in groups]) if groups else batch.system.new_zeros(0)
    # The same on all ranks, whatever each holds, as backward passes have to be.
    ordered = len(groups) <= 1 or (not census.divided and bool((laid_out[1:] > laid_out[:-1]).all()))
    return CoulombPlan(
        n_atoms=batch.n_atoms,
        n_systems=batch.n_systems,
        smearing=torch.from_numpy(smearing).to(device),
        groups=tuple(groups),
        order=None if ordered else torch.argsort(laid_out),
        gap=gap,
        cell=Seen(batch.cell),
        n_ranks=ranks_of(ranks),
    )


def _mesh_of(
    sizes: _Reciprocal, index: int, accuracy: float, smearing: float, atoms: int, charged: bool, degree: int
) -> MeshSize:
    """Mesh of a system for multipoles up to a degree."""
    lengths = tuple(sizes.lengths[index].tolist())
    return mesh_size(accuracy, degree, smearing, atoms, lengths, float(sizes.volumes[index]), charged)


def _cheapest(sizes: _Reciprocal, index: int, atoms: int, mesh_of: Callable[[int], MeshSize], order: int) -> str:
    """Name of the sum that takes the least time for multipoles of a system up to an order."""
    # Too small for the compiled kernels of the mesh; open systems of that size have been taken by the open sum.
    if atoms < LEAST_COMPILED:
        return "ewald"
    costs = {"mesh": mesh_of(order).cost, "ewald": ewald_cost(atoms, tuple(sizes.ranges[order, index].tolist()), order)}
    if sizes.truncation is not None and sizes.truncation.periodic == 0:
        costs["open"] = open_cost(atoms, order)
    return min(costs, key=lambda name: costs[name])


def _mesh_group(
    sizes: _Reciprocal, index: int, meshes: list[MeshSize], padding: Padding, smearing: np.ndarray
) -> MeshGroup:
    """Make the group of one system on a mesh."""
    device = padding.index.device
    return MeshGroup(
        padding=padding,
        smearing=torch.from_numpy(smearing[sizes.systems[[index]]]).to(device),
        basis=torch.from_numpy(sizes.basis[[index]]).to(device),
        cell=sizes.cells[[index]].to(device),
        shapes=tuple(mesh.shape for mesh in meshes),
        orders=tuple(mesh.order for mesh in meshes),
        truncation=_truncation(sizes, [index], np.array([[n // 2 for n in mesh.shape] for mesh in meshes]), device),
    )


def _truncation(sizes: _Reciprocal, members: list[int], ranges: np.ndarray, device: torch.device) -> Truncation | None:
    """Return the truncation of some of the systems, for reciprocal vectors up to the largest of ``ranges``."""
    if sizes.truncation is None:
        return None
    largest = ranges.reshape(-1, 3).max(0).tolist()
    return moved_to(sizes.truncation.take(members).with_bessel(tuple(largest)), device)


def _reciprocal_sizes(
    batch: AtomicBatch,
    systems: np.ndarray,
    census: Census,
    pbc: np.ndarray,
    smearing: np.ndarray,
    accuracy: float,
    gap: float | None,
    ranks: dist.ProcessGroup | None,
) -> _Reciprocal:
    dimension = int(pbc[systems[0]].sum())
    cells = batch.cell.detach().to("cpu", torch.float64)[systems]
    truncation = None
    if dimension < 3:
        padding = make_padding(systems.tolist(), census, torch.device("cpu"))
        positions = padding.gather(batch.positions.detach().to("cpu", torch.float64))
        sigma = torch.from_numpy(smearing[systems])
        truncation, cells = make_truncation(positions, padding.mask, cells, pbc[systems], sigma, gap, ranks)
    basis = reduced_bases(cells.numpy(), dimension)
    lengths = np.linalg.norm(basis @ cells.numpy(), axis=2)
    sigma = smearing[systems]
    of_each = list(zip(sigma.tolist(), census.total[systems].tolist(), strict=True))
    wanted = [[reduced_cutoff(accuracy, order, one, atoms) for one, atoms in of_each] for order in range(3)]
    cutoffs = torch.tensor(wanted, dtype=torch.float64)
    ends = short_cell(cutoffs, cells, torch.from_numpy(sigma), _short_vectors(cells, sigma))
    # An index h of k obeys |h| = |k·a|/2π ≤ |k||a|/2π.
    ranges = np.floor(ends.numpy()[..., None] * (lengths / sigma[:, None] / (2.0 * math.pi))).astype(int)
    # Half of what a cell is padded to along open directions is empty, and more.
    volumes = np.abs(np.linalg.det(cells.numpy())) * 0.5 ** (3 - dimension)
    return _Reciprocal(systems, cells, truncation, basis, lengths, volumes, cutoffs, ranges)


def _short_vectors(cells: Tensor, smearing: np.ndarray) -> Tensor | None:
    vectors = short_vectors(cells.numpy(), smearing)
    return None if vectors is None else torch.from_numpy(vectors)


def _ewald_groups(
    sizes: _Reciprocal,
    which: list[int],
    census: Census,
    smearing: np.ndarray,
    device: torch.device,
) -> list[EwaldGroup]:
    """Group those of the systems that are summed by Ewald."""
    systems, ranges = sizes.systems[which], sizes.ranges[:, which]
    measures = np.concatenate((census.total[systems, None], ranges[0] + 1), axis=1).astype(float)
    groups = []
    for members in _group_by_cost(measures.prod(1), measures) if which else []:
        chosen = [which[member] for member in members]
        groups.append(
            EwaldGroup(
                padding=make_padding(systems[members].tolist(), census, device),
                smearing=torch.from_numpy(smearing[systems[members]]).to(device),
                basis=torch.from_numpy(sizes.basis[chosen]).to(device),
                ranges=tuple(tuple(ranges[order][members].max(0).tolist()) for order in range(3)),
                cutoffs=sizes.cutoffs[:, chosen].to(device),
                self_factors=self_factors(sizes.cutoffs[:, chosen]).to(device),
                short_vectors=moved_to(_short_vectors(sizes.cells[chosen], smearing[systems[members]]), device),
                truncation=_truncation(sizes, chosen, ranges[:, members], device),
            )
        )
    return groups
