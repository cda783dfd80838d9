"""Born charges as the publications make them: one lattice harmonic, the mean charge taken off and differentiated."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.multipoles import Multipoles


def published_born_charges(
    batch: AtomicBatch, multipoles: Multipoles, *, remove_mean: bool, create_graph: bool
) -> tuple[Float[Tensor, "atoms 3 3"], Float[Tensor, "atoms 3 3"] | None]:
    """Born charges of charges, and of dipoles where there are any; first index polarization, second displacement.

    Open systems: ∂(Σ q̃ r + Σ u)/∂r. Periodic ones: one harmonic along each cell vector a,
    Re[e^{−iθ_i} ∂/∂r_i Σ_j q̃_j e^{iθ_j}/(2πi)]·a with θ the phase of a fractional coordinate. q̃ is the charge less the
    mean of its system, which is differentiated, too.
    """
    charges = multipoles.charges
    if remove_mean:
        sums = charges.new_zeros(batch.n_systems).index_add(0, batch.system, charges)
        charges = charges - (sums / batch.counts)[batch.system]
    periodic = batch.pbc.all(1)
    cell = torch.where(periodic[:, None, None], batch.cell, torch.eye(3).to(batch.cell)).detach()
    phases = 2.0 * math.pi * torch.einsum("ax,axc->ac", batch.positions, torch.linalg.inv(cell)[batch.system])
    inside = periodic[batch.system]

    def slope(values: Tensor) -> Tensor:
        """Gradient in the positions of a sum over atoms."""
        if not values.requires_grad:
            return torch.zeros_like(batch.positions)
        found = torch.autograd.grad(
            values.sum(), batch.positions, retain_graph=True, create_graph=create_graph, allow_unused=True
        )[0]
        return torch.zeros_like(batch.positions) if found is None else found

    rows = []
    for axis in range(3):
        along = cell[batch.system, axis]  # (atoms, 3)
        theta = phases[:, axis]
        # Re[e^{−iθ} ∂(Σ q e^{iθ})/(2πi)] = cos θ ∂(Σ q sin θ)/2π − sin θ ∂(Σ q cos θ)/2π
        zero = torch.zeros_like(charges)
        by_sine = slope(torch.where(inside, charges * theta.sin(), zero)) / (2.0 * math.pi)
        by_cosine = slope(torch.where(inside, charges * theta.cos(), zero)) / (2.0 * math.pi)
        fraction = theta.cos()[:, None] * by_sine - theta.sin()[:, None] * by_cosine
        rows.append(along[:, :, None] * fraction[:, None, :])
    born = rows[0] + rows[1] + rows[2]
    plain = torch.stack([slope(torch.where(inside, zero, charges * batch.positions[:, a])) for a in range(3)], 1)
    born = torch.where(inside[:, None, None], born, plain)
    dipoles = multipoles.dipoles
    return born, None if dipoles is None else torch.stack([slope(dipoles[:, a]) for a in range(3)], dim=1)
