"""The published sum and Born charges, as models trained with them need: a hard cutoff in k, one lattice harmonic.

Equations of arXiv 2408.15165 and 2605.05746, see the page on theory. New models do better with `farfield.Coulomb`: the
energy of this sum jumps whenever a cell gains or loses a k-vector, and lacks what lies beyond the cutoff.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.multipoles import Multipoles


def truncated_energy(
    batch: AtomicBatch, multipoles: Multipoles, *, smearing: float, dl: float, keep_self: bool
) -> Float[Tensor, " systems"]:
    """Σ over 0 < |k| ≤ 2π/dl of exp(−σ²k²/2)/k² |S(k)|²/V of systems periodic along all axes, for 1/(2ε₀) = 1.

    Parameters
    ----------
    batch, multipoles
        The systems and what their atoms carry.
    smearing
        σ (Å).
    dl
        Resolution (Å) that the cutoff follows from.
    keep_self
        Keep the interaction of each Gaussian with itself.

    Returns
    -------
    Tensor
        Shape (systems,), e²/Å, in the dtype of the positions; 0 for systems that are open.
    """
    energies = []
    for system in range(batch.n_systems):
        if not bool(batch.pbc[system].all()):
            energies.append(batch.positions.new_zeros(()))
            continue
        atoms = (batch.system == system).nonzero()[:, 0]
        energies.append(
            _energy_of_one(batch.positions[atoms], batch.cell[system], _part(multipoles, atoms), smearing, dl)
        )
    energy = torch.stack(energies)
    return energy if keep_self else energy - self_energy(batch, multipoles, smearing)


def _part(multipoles: Multipoles, atoms: Tensor) -> Multipoles:
    dipoles, quadrupoles = multipoles.dipoles, multipoles.quadrupoles
    return Multipoles(
        multipoles.charges[atoms],
        None if dipoles is None else dipoles[atoms],
        None if quadrupoles is None else quadrupoles[atoms],
    )


def _energy_of_one(positions: Tensor, cell: Tensor, multipoles: Multipoles, smearing: float, dl: float) -> Tensor:
    waves = half_sphere(cell, dl).to(cell.dtype) @ (2.0 * math.pi * torch.linalg.inv(cell).mT)
    squares = waves.square().sum(1)
    phases = positions @ waves.mT
    even: Tensor = multipoles.charges[:, None]
    if multipoles.quadrupoles is not None:
        even = even - 0.5 * torch.einsum("kx,axy,ky->ak", waves, multipoles.quadrupoles, waves)
    odd = 0.0 if multipoles.dipoles is None else multipoles.dipoles @ waves.mT
    cosine, sine = phases.cos(), phases.sin()
    real, imaginary = (even * cosine - odd * sine).sum(0), (even * sine + odd * cosine).sum(0)
    weights = 2.0 * torch.exp(-0.5 * smearing**2 * squares) / squares
    return (weights * (real.square() + imaginary.square())).sum() / torch.linalg.det(cell).abs()


@torch.no_grad()
def half_sphere(cell: Float[Tensor, "3 3"], dl: float) -> Int[Tensor, "waves 3"]:
    """Integers h of the vectors k = 2π h·A⁻ᵀ with 0 < |k| ≤ 2π/dl, one of each pair ±k."""
    # h = k·a/2π for each cell vector a
    reach = [int(length / dl) for length in cell.norm(dim=1).tolist()]
    ranges = [torch.arange(-n, n + 1, device=cell.device) for n in reach]
    h = torch.cartesian_prod(*ranges)
    h = h[len(h) // 2 + 1 :]  # the list is symmetric about 0
    lengths = (h.double() @ torch.linalg.inv(cell.double()).mT).norm(dim=1)
    return h[lengths <= 1.0 / dl]


def self_energy(batch: AtomicBatch, multipoles: Multipoles, smearing: float) -> Float[Tensor, " systems"]:
    """k_e/√(2π) Σ [q²/σ + u²/(3σ³) + Q:Q/(10σ⁵)] for 1/(2ε₀) = 2π k_e = 1, shape (systems,), e²/Å."""
    atoms = multipoles.charges.square() / smearing
    if multipoles.dipoles is not None:
        atoms = atoms + multipoles.dipoles.square().sum(1) / (3.0 * smearing**3)
    if multipoles.quadrupoles is not None:
        atoms = atoms + multipoles.quadrupoles.square().sum((1, 2)) / (10.0 * smearing**5)
    total = atoms.new_zeros(batch.n_systems).index_add(0, batch.system, atoms)
    return total / (2.0 * math.pi) ** 1.5


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
