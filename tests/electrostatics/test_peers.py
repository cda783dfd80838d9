"""Other codes on the very same Gaussians."""

from __future__ import annotations

import math
import os

import pytest
import torch
from electrostatic_systems import TRICLINIC, forces_and_strain, random_multipoles, random_system

from farfield.electrostatics.coulomb import Coulomb
from farfield.units import COULOMB_CONSTANT


def test_torch_pme_reciprocal_part():
    """torch-pme's Ewald sum without neighbours is the Gaussian sum, in the background of point charges."""
    torchpme = pytest.importorskip("torchpme")
    batch, multipoles = random_system(7, TRICLINIC), random_multipoles(7, order=0)
    smearing = 0.9
    law = torchpme.CoulombPotential(smearing=smearing, prefactor=COULOMB_CONSTANT)
    peer = torchpme.EwaldCalculator(law, lr_wavelength=0.3).double()
    positions = batch.positions.clone().requires_grad_()
    potential = peer.forward(
        charges=multipoles.charges[:, None],
        cell=batch.cell[0],
        positions=positions,
        neighbor_indices=torch.zeros(0, 2, dtype=torch.int64),
        neighbor_distances=torch.zeros(0, dtype=torch.float64),
    )
    theirs = (potential[:, 0] * multipoles.charges).sum()
    coulomb = Coulomb(smearing, accuracy=1e-10, background="point")
    energy, forces, _ = forces_and_strain(coulomb, batch, multipoles)
    torch.testing.assert_close(energy[0], theirs.detach(), rtol=1e-9, atol=0)
    torch.testing.assert_close(forces, -torch.autograd.grad(theirs, positions)[0], rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 1, 2])
def test_nvalchemi_multipoles(order):
    """The reciprocal sum of nvalchemi-toolkit-ops, whose erf(r/2σ) has our σ/√2."""
    if not os.environ.get("FARFIELD_PEERS"):
        pytest.skip("its first call compiles for minutes: set FARFIELD_PEERS=1 to run it")
    name = "nvalchemiops.torch.interactions.electrostatics"
    peer = pytest.importorskip(f"{name}.multipole_electrostatics")
    pack = pytest.importorskip(f"{name}._multipole_moments").pack_multipole_moments
    smearing = 0.9
    batch, multipoles = random_system(6, TRICLINIC), random_multipoles(6, order)
    theirs = peer.multipole_electrostatic_energy(
        batch.positions,
        pack(multipoles.charges, multipoles.dipoles, multipoles.quadrupoles),
        batch.cell[0],
        sigma=smearing / math.sqrt(2.0),
        k_cutoff=8.0 / smearing,
    )
    energy = Coulomb(smearing, accuracy=1e-9)(batch, multipoles).energy
    torch.testing.assert_close(energy[0], theirs.sum(), rtol=2e-7, atol=0)
