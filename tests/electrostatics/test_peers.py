"""Other codes: on the very same Gaussians, or on point charges, which are Gaussians plus a sum over near pairs."""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from electrostatic_systems import (
    TRICLINIC,
    forces_and_strain,
    one_system,
    point_charge_energy,
    random_multipoles,
    random_system,
)

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


def openmm_point_charges(batch, charges, method, cutoff=8.5, grid=None):
    """Energy (eV) and forces (eV/Å) of point charges by OpenMM's reference platform, which computes in float64."""
    openmm = pytest.importorskip("openmm", reason="OpenMM is not here: make peers")
    system, force = openmm.System(), openmm.NonbondedForce()
    for charge in charges.tolist():
        system.addParticle(1.0)
        force.addParticle(charge, 0.1, 0.0)
    force.setNonbondedMethod(getattr(force, method))
    force.setCutoffDistance(cutoff / 10.0)  # nm
    if batch.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in (batch.cell[0] / 10.0).tolist()))
        force.setEwaldErrorTolerance(1e-11)
    if grid is not None:
        # erfc(5.5 · .85) = 4e-11 is left out in real space, and the grid has all of the error.
        force.setPMEParameters(5.5, grid, grid, grid)
    system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions((batch.positions / 10.0).numpy())
    state = context.getState(getEnergy=True, getForces=True)
    energy = state.getPotentialEnergy().value_in_unit(openmm.unit.kilojoule_per_mole)
    forces = state.getForces(asNumpy=True).value_in_unit(openmm.unit.kilojoule_per_mole / openmm.unit.nanometer)
    return energy, torch.from_numpy(np.asarray(forces))


@pytest.fixture(scope="module")
def openmm_unit():
    """Electronvolts per kJ/mol by the Coulomb constant of either code: two opposite charges 10 Å apart."""
    pair = one_system(torch.tensor([[0.0, 0.0, 0.0], [10.0, 0.0, 0.0]], dtype=torch.float64))
    theirs, _ = openmm_point_charges(pair, torch.tensor([1.0, -1.0]), "NoCutoff")
    assert theirs == pytest.approx(-138.935456, rel=1e-7)  # kJ/mol nm: what we read is what we think it is
    return -COULOMB_CONSTANT / 10.0 / theirs


def our_point_charges(batch, charges):
    positions = batch.positions.clone().requires_grad_()
    energy = point_charge_energy(batch.replace(positions=positions), charges, accuracy=1e-11)
    return energy.item(), -torch.autograd.grad(energy, positions)[0]


# A lattice sheared by halves of its edges has a rectangular cell of four times the volume.
SHEARED = torch.tensor([[18.0, 0.0, 0.0], [9.0, 10.0, 0.0], [9.0, 0.0, 11.0]], dtype=torch.float64)
RECTANGULAR = torch.diag(torch.tensor([18.0, 20.0, 22.0], dtype=torch.float64))


@pytest.mark.parametrize("neutral", [True, False])
def test_openmm_ewald_of_oblique_cells(openmm_unit, neutral):
    """OpenMM's Ewald sum wants rectangular cells, so it gets four of ours; in charged ones it too has a background."""
    batch, charges = random_system(8, SHEARED), random_multipoles(8, order=0).charges
    if neutral:
        charges = charges - charges.mean()
    energy, forces = our_point_charges(batch, charges)
    shifts = [i * SHEARED[1] + j * SHEARED[2] for i in (0, 1) for j in (0, 1)]
    four = one_system(torch.cat([batch.positions + shift for shift in shifts]), RECTANGULAR)
    theirs, their_forces = openmm_point_charges(four, charges.repeat(4), "Ewald")
    assert energy == pytest.approx(openmm_unit * theirs / 4, rel=1e-9)
    torch.testing.assert_close(forces, openmm_unit / 10.0 * their_forces[:8], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("neutral", [True, False])
def test_openmm_mesh_of_oblique_cells(openmm_unit, neutral):
    """OpenMM's particle mesh takes oblique cells as they are; splines of fifth order leave h⁴ in the forces."""
    cell = torch.tensor([[18.0, 0.0, 0.0], [4.0, 19.0, 0.0], [-5.0, 6.0, 20.0]], dtype=torch.float64)
    batch, charges = random_system(8, cell), random_multipoles(8, order=0).charges
    if neutral:
        charges = charges - charges.mean()
    energy, forces = our_point_charges(batch, charges)
    deviations = []
    for grid in (64, 128):
        theirs, their_forces = openmm_point_charges(batch, charges, "PME", grid=grid)
        deviations.append(float((forces - openmm_unit / 10.0 * their_forces).norm() / forces.norm()))
    assert energy == pytest.approx(openmm_unit * theirs, rel=1e-6)
    assert deviations[1] < 3e-6
    assert deviations[1] < deviations[0] / 2**4
