"""Force error of the particle mesh for every order of splines and spacing: the table in farfield.electrostatics.cost.

    python benchmarks/mesh_errors.py

Liquid water (SPC/E charges), molten salt, and random dipoles and quadrupoles on both, σ = 1 Å. The
relative RMS force error of the worse of the two systems, over several positions of the mesh, as log10, one row for each
order of splines (4 … 8), one column for each spacing h/σ.
"""

from __future__ import annotations

import math

import torch
from electrostatics import higher_multipoles, water_box

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.mesh import MeshGeometry, influence
from farfield.electrostatics.multipoles import Multipoles

ORDERS = (4, 5, 6, 7, 8)
POINTS_PER_SIGMA = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0)


def salt() -> tuple[AtomicBatch, torch.Tensor]:
    """216 ions of rock salt, shaken by a tenth of their distance and more."""
    grid = torch.cartesian_prod(*[torch.arange(6, dtype=torch.float64)] * 3)
    generator = torch.Generator().manual_seed(6)
    positions = (grid + 0.15 * torch.randn(216, 3, generator=generator, dtype=torch.float64)) * 2.82
    water, _ = water_box(1, 0)
    numbers = torch.ones(216, dtype=torch.int64)
    cell = torch.eye(3, dtype=torch.float64)[None] * 6 * 2.82
    batch = AtomicBatch(positions, numbers, cell, water.pbc, torch.zeros_like(numbers))
    return batch, 1.0 - 2.0 * (grid.sum(1) % 2)


def exact_forces(batch: AtomicBatch, multipoles: Multipoles) -> torch.Tensor:
    """Find the forces by Ewald at 10⁻¹⁰."""
    positions = batch.positions.clone().requires_grad_()
    energy = Coulomb(accuracy=1e-10)(batch.replace(positions=positions), multipoles, outputs="energy").energy
    return -torch.autograd.grad(energy.sum(), positions)[0]


def mesh_forces(batch: AtomicBatch, multipoles: Multipoles, spacing: float, order: int, degree: int) -> torch.Tensor:
    """Find the forces by a mesh of a spacing (Å), in a cell stretched to a whole number of points."""
    cell = batch.cell[0]
    shape = tuple(round(float(length) / spacing) for length in cell.norm(dim=1))
    positions = batch.positions.clone().requires_grad_()
    kernel = influence(cell, torch.tensor(1.0, dtype=torch.float64), shape, order)
    one = torch.eye(3, dtype=torch.float64)
    geometry = MeshGeometry(positions, cell, one, kernel, shape, order, degree, degree)
    energy = geometry.energy(geometry.density(multipoles.charges, multipoles.dipoles, multipoles.quadrupoles))
    return -torch.autograd.grad(energy, positions)[0]


def main() -> None:
    torch.set_num_threads(1)
    systems = [water_box(64, 1), salt()]
    for degree in (0, 1, 2):
        print(f"degree {degree}: log10 of the relative RMS force error, h/σ = {[1 / n for n in POINTS_PER_SIGMA]}")
        cases = []
        for batch, charges in systems:
            dipoles, quadrupoles = higher_multipoles(batch.n_atoms)
            multipoles = Multipoles(charges, dipoles if degree else None, quadrupoles if degree > 1 else None)
            cases.append((batch, multipoles, exact_forces(batch, multipoles)))
        for order in ORDERS:
            row = []
            for density in POINTS_PER_SIGMA:
                worst = 0.0
                if order > degree + 1:
                    for batch, multipoles, exact in cases:
                        # a cell that is a whole number of spacings long, as near the system's as can be
                        length = float(batch.cell[0, 0, 0])
                        spacing = length / max(round(length * density), 1)
                        forces = mesh_forces(batch, multipoles, spacing, order, degree)
                        worst = max(worst, float((forces - exact).norm() / exact.norm()))
                row.append(round(math.log10(worst), 2) if worst else math.inf)
            print(f"    {order}: {tuple(row)},")


if __name__ == "__main__":
    main()
