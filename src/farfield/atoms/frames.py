"""Frames of systems with any periodicity: cell vectors where periodic, unit normals where open."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch


def completed_cells(batch: AtomicBatch) -> Float[Tensor, "systems 3 3"]:
    """Cells with each open axis replaced by a unit vector normal to all the periodic ones and to the other open ones.

    Coordinates in this frame are fractions along periodic axes and plain lengths (Å) along open ones, whatever the cell
    says about its open axes.

    Returns
    -------
    Tensor
        Rows are vectors (Å), shape (systems, 3, 3), float64, without gradient.
    """
    cell = batch.cell.detach().to(torch.float64)
    periodic = batch.pbc
    # The rows of Vh beyond the rank of the periodic vectors span the open directions.
    _, _, rows = torch.linalg.svd(cell * periodic[:, :, None])
    rank = periodic.sum(dim=1, keepdim=True)
    place = (rank + (~periodic).cumsum(dim=1) - 1).clamp(0, 2)
    normals = torch.gather(rows, 1, place[:, :, None].expand(-1, -1, 3))
    return torch.where(periodic[:, :, None], cell, normals)


def open_projectors(batch: AtomicBatch) -> Float[Tensor, "systems 3 3"]:
    """Projectors on the directions normal to all periodic vectors: 1 for clusters, exactly 0 for bulk.

    Open directions are these, whatever the cell says about its open axes.

    Returns
    -------
    Tensor
        Symmetric, shape (systems, 3, 3), float64, differentiable in the cell: normals turn with it.
    """
    cell, periodic = batch.cell.double(), batch.pbc[:, :, None]
    left = torch.eye(3, dtype=torch.float64, device=cell.device).expand(batch.n_systems, 3, 3)
    for axis in range(3):
        # an open vector may vanish; any other in its place keeps the unused unit vector's derivative finite
        vector = torch.where(periodic[:, axis], cell[:, axis], 1.0)
        rest = torch.where(periodic[:, axis], torch.einsum("sab,sb->sa", left, vector), vector)
        unit = torch.nn.functional.normalize(rest, dim=1) * periodic[:, axis]
        left = left - unit[:, :, None] * unit[:, None, :]
    return torch.where(periodic.all(dim=1, keepdim=True), 0.0, left)


def open_arms(batch: AtomicBatch) -> Float[Tensor, "atoms 3"]:
    """Positions (Å) from the geometric centre of their system, along its open directions alone, in their own dtype."""
    centre = batch.sum_over_atoms(batch.positions) / batch.counts.clamp(min=1)[:, None]
    arms = batch.positions - centre.to(batch.positions)[batch.system]
    return torch.einsum("na,nab->nb", arms, open_projectors(batch).to(arms)[batch.system])


def perpendicular_heights(frames: Float[Tensor, "systems 3 3"]) -> Float[Tensor, "systems 3"]:
    """Distance (Å) between the faces of the cell that each of its vectors connects, shape (systems, 3)."""
    return 1.0 / torch.linalg.inv(frames).norm(dim=1)
