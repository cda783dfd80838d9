"""Sums of point charges: the Gaussian sum plus erfc(a r)/r between near neighbours is the sum of 1/r.

That turns Madelung constants, Wigner lattices and reference configurations of water into tests of the Gaussian sum.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from electrostatic_systems import forces_and_strain, one_system, point_charge_energy

from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.units import COULOMB_CONSTANT

# Madelung constants for the shortest distance between unlike ions: E per formula unit = −M k_e q²/d.
CRYSTALS = {
    # Rock salt: two face-centred cubic lattices, shifted by half an edge.
    "NaCl": (1.747564594633, [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], [0.5, 0.5, 0.5], 0.5),
    # Caesium chloride: two simple cubic lattices, shifted by half a body diagonal.
    "CsCl": (1.762674773071, [[1, 0, 0], [0, 1, 0], [0, 0, 1]], [0.5, 0.5, 0.5], math.sqrt(3) / 2),
    # Zinc blende: two face-centred cubic lattices, shifted by a quarter of a body diagonal.
    "ZnS": (1.638055053389, [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], [0.25, 0.25, 0.25], math.sqrt(3) / 4),
}


@pytest.mark.parametrize("name", CRYSTALS)
def test_madelung_constants(name):
    constant, cell, shift, distance = CRYSTALS[name]
    edge = 5.0
    positions = torch.tensor([[0.0, 0.0, 0.0], shift], dtype=torch.float64) * edge
    batch = one_system(positions, torch.tensor(cell, dtype=torch.float64) * edge)
    energy = point_charge_energy(batch, torch.tensor([2.0, -2.0], dtype=torch.float64))
    assert float(energy) == pytest.approx(-constant * COULOMB_CONSTANT * 4.0 / (distance * edge), rel=1e-8)


# One charge a cell in a uniform background, the Wigner lattice: E = −c k_e q²/r_s with 4πr_s³/3 = V.
WIGNER = {
    "simple cubic": (0.880059442210, [[1, 0, 0], [0, 1, 0], [0, 0, 1]], 1.0),
    "body-centred": (0.895929255682, [[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]], 0.5),
    "face-centred": (0.895873615195, [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], 0.25),
}


@pytest.mark.parametrize("name", WIGNER)
@pytest.mark.parametrize("background", ["gaussian", "point"])
def test_wigner_lattices_and_their_pressure(name, background):
    constant, cell, cells = WIGNER[name]
    edge, charge, smearing = 7.0, 1.5, 0.6
    volume = cells * edge**3
    radius = (3.0 * volume / (4.0 * math.pi)) ** (1.0 / 3.0)
    lattice = -constant * COULOMB_CONSTANT * charge**2 / radius
    # Gaussians in their own background: the k = 0 term π k_e σ² q²/V of the point charges is left out.
    extra = math.pi * COULOMB_CONSTANT * smearing**2 * charge**2 / volume if background == "gaussian" else 0.0
    batch = one_system(torch.zeros(1, 3, dtype=torch.float64), torch.tensor(cell, dtype=torch.float64) * edge)
    coulomb = Coulomb(smearing, accuracy=1e-9, background=background)
    energy, forces, strain = forces_and_strain(coulomb, batch, Multipoles(torch.tensor([charge], dtype=torch.float64)))
    # The first image of the Gaussian lies many σ away, so the self-energy taken off is all that is not point-like.
    assert float(energy) == pytest.approx(lattice + extra, rel=1e-8)
    assert float(forces.abs().max()) < 1e-10
    # E = A/L + B/L³, and a uniform strain ε scales L by 1 + ε: dE/dε is −A/L − 3B/L³, a third of it along each axis.
    expected = torch.eye(3, dtype=torch.float64) * (-lattice - 3.0 * extra) / 3.0
    torch.testing.assert_close(strain[0], expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "total", "intermolecular"),
    [("cubic", -89416.959, -4883.227), ("monoclinic", -86076.524, -1542.792)],
)
def test_spce_water_of_nist(shared_data, name, total, intermolecular):
    """NIST's SPC/E configurations; converged energies in kJ/mol with k_e = 1389.3546 kJ Å/mol (data/README.md)."""
    ase_io = pytest.importorskip("ase.io")
    atoms = ase_io.read(shared_data / "16_ewald_reference" / f"nist_spce_{name}_100mol.extxyz")
    positions = torch.from_numpy(atoms.positions)
    charges = torch.from_numpy(atoms.get_initial_charges())
    batch = one_system(positions, torch.from_numpy(np.asarray(atoms.cell)))
    unit = 1389.3546 / COULOMB_CONSTANT
    energy = unit * float(point_charge_energy(batch, charges, accuracy=1e-7, smearing=1.2))
    # The published total carries eight digits, and so does its constant.
    assert energy == pytest.approx(total, rel=1.5e-7)
    inside = 0.0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        bond = positions[j::3] - positions[i::3]
        fractional = torch.linalg.solve(batch.cell[0].mT, bond.mT).mT
        bond = bond - torch.round(fractional) @ batch.cell[0]
        inside += float((charges[i::3] * charges[j::3] / bond.norm(dim=1)).sum())
    assert 1389.3546 * inside == pytest.approx(total - intermolecular, rel=1.5e-7)
    assert energy - 1389.3546 * inside == pytest.approx(intermolecular, abs=2e-3)


def test_frames_of_torch_pme(shared_data):
    """Energies, forces and stress of point charges, from an independent code at its own accuracy."""
    ase_io = pytest.importorskip("ase.io")
    for atoms in ase_io.read(shared_data / "16_ewald_reference" / "torchpme_coulomb_test_frames.extxyz", ":"):
        positions = torch.from_numpy(atoms.positions).requires_grad_()
        cell = torch.from_numpy(np.asarray(atoms.cell)).requires_grad_()
        charges = torch.from_numpy(atoms.get_initial_charges())
        energy = point_charge_energy(one_system(positions, cell), charges)
        by_position, by_cell = torch.autograd.grad(energy, (positions, cell))
        strain = positions.detach().mT @ by_position + cell.detach().mT @ by_cell
        assert float(energy.detach()) == pytest.approx(atoms.get_potential_energy(), abs=5e-4)
        torch.testing.assert_close(-by_position, torch.from_numpy(atoms.get_forces()), rtol=0, atol=5e-4)
        # Their `stress` is half of dE/dstrain, in eV, not divided by the volume.
        xx, yy, zz, yz, xz, xy = atoms.get_stress()
        half = torch.tensor([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]], dtype=torch.float64)
        torch.testing.assert_close(strain, 2.0 * half, rtol=0, atol=5e-3)
