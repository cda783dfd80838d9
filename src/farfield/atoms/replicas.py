"""Supercells of the systems of a batch."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from farfield.atoms.batch import AtomicBatch


def replicate(batch: AtomicBatch, copies: Int[Tensor, "systems 3"]) -> tuple[AtomicBatch, Int[Tensor, " atoms"]]:
    """Repeat each system along its cell vectors.

    Parameters
    ----------
    batch
        The systems; neighbours are left out of the result.
    copies
        How often along each cell vector, shape (systems, 3), at least 1; 1 along directions without periodicity.

    Returns
    -------
    AtomicBatch
        Supercells, with total charges of as many cells, and positions and cells that are differentiable in those given.
    Tensor
        Place of each of the batch's atoms among theirs, shape (atoms,).

    Raises
    ------
    ValueError
        If a number of copies is below 1, or above 1 where there is no periodicity.
    """
    copies = copies.to(batch.system)
    if copies.shape != (batch.n_systems, 3) or bool((copies < 1).any()) or bool((copies[~batch.pbc] > 1).any()):
        raise ValueError(
            f"`copies` is {copies.tolist()} but must be three whole numbers for each of {batch.n_systems} systems: at "
            "least 1, and 1 along directions that are not periodic"
        )
    atoms, offsets, systems, first = [], [], [], []
    start, placed = 0, 0
    for system, count in enumerate(batch.counts.tolist()):
        grid = torch.cartesian_prod(*(torch.arange(int(n), device=copies.device) for n in copies[system]))
        own = torch.arange(start, start + count, device=copies.device)
        atoms.append(own.repeat(len(grid)))
        offsets.append((grid.to(batch.cell) @ batch.cell[system]).repeat_interleave(count, dim=0))
        systems.append(own.new_full((count * len(grid),), system))
        first.append(own - start + placed)
        start += count
        placed += count * len(grid)
    index = torch.cat(atoms)
    number = copies.prod(dim=1)
    supercells = batch.replace(
        positions=batch.positions[index] + torch.cat(offsets),
        numbers=batch.numbers[index],
        cell=batch.cell * copies[:, :, None].to(batch.cell),
        system=torch.cat(systems),
        total_charge=None if batch.total_charge is None else batch.total_charge * number.to(batch.total_charge),
        neighbors=None,
    )
    return supercells, torch.cat(first)
