"""Random systems of Gaussian multipoles, and what the tests of the Coulomb solver do with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import bond_vectors, find_neighbors
from farfield.electrostatics.coulomb import Coulomb, CoulombResult
from farfield.electrostatics.multipoles import Multipoles
from farfield.units import COULOMB_CONSTANT

TRICLINIC = torch.tensor([[6.0, 0.4, -0.3], [1.5, 7.0, 0.2], [-1.1, 2.0, 6.5]], dtype=torch.float64)


def one_system(positions: Tensor, cell: Tensor | None = None) -> AtomicBatch:
    """Batch of one system, periodic where a cell is given and open where none is."""
    numbers = torch.ones(len(positions), dtype=torch.int64)
    box = torch.zeros(3, 3, dtype=positions.dtype) if cell is None else cell
    return AtomicBatch(
        positions=positions,
        numbers=numbers,
        cell=box[None],
        pbc=torch.full((1, 3), cell is not None),
        system=torch.zeros_like(numbers),
    )


def traceless(matrix: Tensor) -> Tensor:
    """Symmetric traceless part of matrices."""
    symmetric = 0.5 * (matrix + matrix.mT)
    trace = symmetric.diagonal(dim1=-2, dim2=-1).mean(-1)
    return symmetric - trace[..., None, None] * torch.eye(3, dtype=matrix.dtype)


def random_multipoles(atoms: int, order: int = 2, seed: int = 0) -> Multipoles:
    """Charges that do not add up to zero, and dipoles and quadrupoles up to an order."""
    generator = torch.Generator().manual_seed(seed)
    charges = torch.randn(atoms, generator=generator, dtype=torch.float64)
    dipoles = 0.5 * torch.randn(atoms, 3, generator=generator, dtype=torch.float64)
    quadrupoles = traceless(0.5 * torch.randn(atoms, 3, 3, generator=generator, dtype=torch.float64))
    return Multipoles(charges, dipoles if order > 0 else None, quadrupoles if order > 1 else None)


def random_system(atoms: int, cell: Tensor | None = None, seed: int = 0, size: float = 4.0) -> AtomicBatch:
    """Atoms anywhere in a cell, or in a cube of some size under open boundaries."""
    generator = torch.Generator().manual_seed(100 + seed)
    fractional = torch.rand(atoms, 3, generator=generator, dtype=torch.float64)
    return one_system(fractional * size if cell is None else fractional @ cell, cell)


def water() -> tuple[AtomicBatch, Tensor]:
    """27 water molecules, turned at random, on a jittered grid at 1 g/cm³; SPC/E charges."""
    generator = torch.Generator().manual_seed(5)
    grid = torch.cartesian_prod(*[torch.arange(3, dtype=torch.float64)] * 3) * 3.104
    turns, _ = torch.linalg.qr(torch.randn(27, 3, 3, generator=generator, dtype=torch.float64))
    shape = torch.tensor([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]], dtype=torch.float64)
    centres = grid + 0.3 * torch.randn(27, 3, generator=generator, dtype=torch.float64)
    positions = (centres[:, None] + torch.einsum("mab,xb->mxa", turns, shape)).reshape(-1, 3)
    charges = torch.tensor([-0.8476, 0.4238, 0.4238], dtype=torch.float64).repeat(27)
    return one_system(positions, torch.eye(3, dtype=torch.float64) * 9.312), charges


def salt() -> tuple[AtomicBatch, Tensor]:
    """64 ions of rock salt, shaken by a tenth of their distance and more."""
    grid = torch.cartesian_prod(*[torch.arange(4, dtype=torch.float64)] * 3)
    generator = torch.Generator().manual_seed(6)
    positions = (grid + 0.15 * torch.randn(64, 3, generator=generator, dtype=torch.float64)) * 2.82
    charges = 1.0 - 2.0 * (grid.sum(1) % 2)
    return one_system(positions, torch.eye(3, dtype=torch.float64) * 4 * 2.82), charges


def parts(multipoles: Multipoles) -> list[Tensor]:
    """Multipoles that are given, as a list."""
    return [m for m in (multipoles.charges, multipoles.dipoles, multipoles.quadrupoles) if m is not None]


def take(multipoles: Multipoles, which: slice | Tensor) -> Multipoles:
    """Multipoles of some of the atoms."""
    return Multipoles(*(part[which] for part in parts(multipoles)))


def forces_and_strain(coulomb: Coulomb, batch: AtomicBatch, multipoles: Multipoles) -> tuple[Tensor, Tensor, Tensor]:
    """Energy (systems,), forces (atoms, 3) and dE/dstrain (systems, 3, 3) at fixed multipoles."""
    positions = batch.positions.detach().clone().requires_grad_()
    cell = batch.cell.detach().clone().requires_grad_()
    energy = coulomb(batch.replace(positions=positions, cell=cell), multipoles, outputs="energy").energy
    by_position, by_cell = torch.autograd.grad(energy.sum(), (positions, cell), allow_unused=True)
    outer = positions.detach()[:, :, None] * by_position[:, None, :]
    strain = torch.zeros_like(batch.cell).index_add(0, batch.system, outer)
    if by_cell is not None:
        strain = strain + cell.detach().mT @ by_cell
    return energy.detach(), -by_position, strain


def all_outputs(result: CoulombResult) -> list[Tensor]:
    """Everything that a result holds."""
    values = (result.energy, result.atom_energies, result.potential, result.field, result.field_gradient)
    return [value for value in values if value is not None]


def point_charge_energy(batch: AtomicBatch, charges: Tensor, accuracy: float = 1e-9, smearing: float = 0.8) -> Tensor:
    """Energy of point charges in a neutralizing background, differentiable in positions and cell.

    It is that of Gaussians plus q_i q_j erfc(r/√2σ)/r between near neighbours, whatever the smearing σ.
    """
    gaussian = Coulomb(smearing, accuracy=accuracy, background="point")
    energy = gaussian(batch, Multipoles(charges), outputs="energy").energy.sum()
    listed = find_neighbors(batch, 8.0 * smearing)
    pairs = listed.neighbors
    if len(pairs.i):
        r = bond_vectors(listed).norm(dim=1)
        products = charges[pairs.i] * charges[pairs.j]
        energy = energy + 0.5 * COULOMB_CONSTANT * (products * torch.erfc(r / (math.sqrt(2) * smearing)) / r).sum()
    return energy
