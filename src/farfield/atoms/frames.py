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


def perpendicular_heights(frames: Float[Tensor, "systems 3 3"]) -> Float[Tensor, "systems 3"]:
    """Distance (Å) between the faces of the cell that each of its vectors connects, shape (systems, 3)."""
    return 1.0 / torch.linalg.inv(frames).norm(dim=1)
