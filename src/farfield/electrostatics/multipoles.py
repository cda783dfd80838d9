"""Atomic multipoles: what the heads predict and the Coulomb solver sums."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Multipoles:
    """Charges, dipoles and quadrupoles of atoms, each optional beyond the charges.

    The kernels also lay them out by systems, padded: then (systems, atoms) stands where (atoms,) does below.

    Attributes
    ----------
    charges
        Atomic charges (e), shape (atoms,).
    dipoles
        Atomic dipoles (e·Å), shape (atoms, 3).
    quadrupoles
        Atomic quadrupoles (e·Å²), shape (atoms, 3, 3), symmetric and traceless.
    """

    charges: Float[Tensor, "*atoms"]
    dipoles: Float[Tensor, "*atoms 3"] | None = None
    quadrupoles: Float[Tensor, "*atoms 3 3"] | None = None

    def replace(self, **changes: object) -> Multipoles:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def detached(self) -> Multipoles:
        """Return the same without a graph."""
        return Multipoles(
            self.charges.detach(),
            None if self.dipoles is None else self.dipoles.detach(),
            None if self.quadrupoles is None else self.quadrupoles.detach(),
        )


def traceless(matrix: Float[Tensor, "*rest 3 3"]) -> Float[Tensor, "*rest 3 3"]:
    """Return matrices less a third of their trace."""
    trace = matrix.diagonal(dim1=-2, dim2=-1).sum(-1)
    return matrix - torch.eye(3, dtype=matrix.dtype, device=matrix.device) * (trace / 3.0)[..., None, None]
