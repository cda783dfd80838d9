"""The theory of the mesh's force error against meshes, and that `accuracy` holds where it plans them."""

from __future__ import annotations

import math

import pytest
import torch
from electrostatic_systems import (
    forces_and_strain,
    one_system,
    random_multipoles,
    random_system,
    salt,
    water,
)

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.electrostatics.cost import LEADING, mesh_size, spacing_by_theory
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.mesh import MeshGeometry, influence
from farfield.electrostatics.mesh_error import force_error, typical_force
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.plan import MeshGroup
from farfield.electrostatics.response import LinearResponse
from farfield.electrostatics.susceptibility import Response
from farfield.units import COULOMB_CONSTANT

EYE = torch.eye(3, dtype=torch.float64)


def unit_multipoles(atoms: int, degree: int, seed: int = 0) -> Multipoles:
    """Multipoles of one order, of the same strength and in all directions."""
    given = random_multipoles(atoms, seed=seed)
    none = torch.zeros_like(given.charges)
    dipoles, quadrupoles = given.dipoles, given.quadrupoles
    assert dipoles is not None
    assert quadrupoles is not None
    if degree == 0:
        return Multipoles(given.charges.sign())
    if degree == 1:
        return Multipoles(none, dipoles / dipoles.norm(dim=1, keepdim=True))
    return Multipoles(none, None, quadrupoles / quadrupoles.flatten(1).norm(dim=1)[:, None, None])


def mesh_forces(batch: AtomicBatch, multipoles: Multipoles, points: int, order: int, degree: int) -> torch.Tensor:
    """Forces of a mesh, in units of k_e."""
    positions, cell, shape = batch.positions.clone().requires_grad_(), batch.cell[0], (points,) * 3
    kernel = influence(cell, torch.tensor(1.0, dtype=torch.float64), shape, order)
    geometry = MeshGeometry(positions, cell, EYE, kernel, shape, order, degree, degree)
    energy = geometry.energy(geometry.density(multipoles.charges, multipoles.dipoles, multipoles.quadrupoles))
    return -torch.autograd.grad(energy, positions)[0] / COULOMB_CONSTANT


@pytest.mark.parametrize("degree", [0, 1, 2])
@pytest.mark.parametrize(("order", "points"), [(5, 12), (6, 14), (8, 20)])
def test_error_of_atoms_anywhere_is_that_of_the_theory(degree, order, points):
    """σ = 1 Å: 80 atoms in a box of 10 Å, and one alone, on which only its own images on the mesh pull."""
    cell = 10.0 * EYE
    between, itself = force_error(degree, order, 10.0 / points)
    batch, multipoles = random_system(80, cell), unit_multipoles(80, degree)
    _, exact, _ = forces_and_strain(Coulomb(accuracy=1e-10, method="ewald"), batch, multipoles)
    error = mesh_forces(batch, multipoles, points, order, degree) - exact / COULOMB_CONSTANT
    expected = between * 79 / 1000.0 + itself
    assert float(error.square().sum(1).mean()) == pytest.approx(expected, rel=0.45)
    lone = [
        mesh_forces(random_system(1, cell, seed), unit_multipoles(1, degree, seed), points, order, degree)
        for seed in range(100)
    ]
    assert float(torch.cat(lone).square().sum(1).mean()) == pytest.approx(itself, rel=0.35)


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_typical_force_is_that_of_atoms_anywhere_and_of_atoms_far_apart(degree):
    if degree > 0:  # half of what charges feel are waves longer than this box
        batch, multipoles = random_system(200, 12.0 * EYE), unit_multipoles(200, degree)
        _, forces, _ = forces_and_strain(Coulomb(accuracy=1e-6), batch, multipoles)
        measured = float(forces.square().sum(1).mean().sqrt()) / COULOMB_CONSTANT
        # Neighbours are nearer than the width of the Gaussians, so that they might be anywhere.
        assert measured == pytest.approx(typical_force(degree, 200, 12.0**3), rel=0.25)

    apart = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 20.0]], dtype=torch.float64)
    pairs = concatenate([one_system(apart)] * 300)
    _, forces, _ = forces_and_strain(Coulomb(), pairs, unit_multipoles(600, degree))
    squared = float(forces.square().sum(1).mean()) / COULOMB_CONSTANT**2 * 20.0 ** (4 * degree + 4)
    # ∫ of that over all places farther than .8 (V/N)^⅓, here 2.88 σ
    volume = 2.0 * 3.6**3
    integral = 4.0 * math.pi * squared / ((4 * degree + 1) * 2.88 ** (4 * degree + 1)) / volume
    assert typical_force(degree, 2, volume) == pytest.approx(math.sqrt(integral), rel=0.15)


def error_of(batch: AtomicBatch, multipoles: Multipoles, smearing: float, accuracy: float) -> float:
    """Relative RMS force error of the mesh that is planned for an accuracy."""
    _, exact, _ = forces_and_strain(Coulomb(smearing, accuracy=1e-3 * accuracy, method="ewald"), batch, multipoles)
    _, forces, _ = forces_and_strain(Coulomb(smearing, accuracy=accuracy, method="mesh"), batch, multipoles)
    return float((forces - exact).norm() / exact.norm())


@pytest.mark.parametrize("make", [water, salt])
@pytest.mark.parametrize("which", ["dipoles", "quadrupoles", "both", "beside weak charges"])
def test_accuracy_holds_without_charges_that_lead(make, which):
    batch, charges = make()
    given = random_multipoles(batch.n_atoms)
    multipoles = Multipoles(
        0.2 * charges if "charges" in which else torch.zeros_like(charges),
        None if which == "quadrupoles" else given.dipoles,
        None if which == "dipoles" else given.quadrupoles,
    )
    for smearing, accuracy in ((1.0, 1e-2), (1.0, 1e-4), (0.7, 1e-4), (2.0, 1e-4), (1.0, 1e-6)):
        assert error_of(batch, multipoles, smearing, accuracy) < accuracy, (smearing, accuracy)


def test_accuracy_holds_with_response():
    """Of dipoles without charges, which polarize a little: response plans as `Coulomb` does."""
    batch, charges = water()
    multipoles = Multipoles(torch.zeros_like(charges), random_multipoles(batch.n_atoms).dipoles)
    response = Response(None, torch.full_like(charges, 1e-3))

    def forces(accuracy: float, method: str) -> torch.Tensor:
        positions = batch.positions.clone().requires_grad_()
        solver = LinearResponse(Coulomb(accuracy=accuracy, method=method))
        energy = solver(batch.replace(positions=positions), multipoles, response).energy.sum()
        return -torch.autograd.grad(energy, positions)[0]

    exact = forces(1e-7, "ewald")
    assert float((forces(1e-4, "mesh") - exact).norm() / exact.norm()) < 1e-4


@pytest.mark.parametrize("atoms", [2, 3, 5])
@pytest.mark.parametrize("length", [4.0, 5.0])
def test_accuracy_holds_for_a_handful_of_atoms_anywhere(atoms, length):
    """In boxes up to 5 σ; farther apart than that atoms of molecules are not."""
    for seed in range(3):
        batch, given = random_system(atoms, length * EYE, seed), random_multipoles(atoms, seed=seed)
        charges = given.charges - given.charges.mean()
        cases = [
            Multipoles(charges),
            Multipoles(charges, given.dipoles),
            given.replace(charges=charges),
            unit_multipoles(atoms, 1, seed),
            unit_multipoles(atoms, 2, seed),
        ]
        for multipoles in cases:
            assert error_of(batch, multipoles, 1.0, 1e-4) < 1e-4, (seed, multipoles)


def test_where_charges_lead_the_mesh_is_as_before():
    """Of a liquid neither theory nor the volume has a say, whatever the accuracy."""
    for degree in (0, 1, 2):
        for accuracy in (1e-2, 1e-4, 1e-6):
            sizes = [mesh_size(accuracy, degree, 1.0, 192, (12.4,) * 3, volume) for volume in (12.4**3, 2 * 12.4**3)]
            assert sizes[0] == sizes[1]
            alone = mesh_size(accuracy, degree, 1.0, 192, (12.4,) * 3, 12.4**3, charged=False)
            assert (alone == sizes[0]) if degree == 0 else (math.prod(alone.shape) > math.prod(sizes[0].shape))


def test_theory_wants_finer_meshes_for_higher_multipoles_and_thinner_systems():
    def spacing(degree: int, volume: float, charged: bool) -> float:
        return spacing_by_theory(1e-4, degree, 7, 1.0, 10, volume, charged)

    assert spacing(0, 100.0, True) > spacing(1, 100.0, True) > spacing(2, 100.0, True)
    assert spacing(0, 100.0, True) > spacing(0, 1000.0, True)
    assert spacing(1, 1000.0, False) > spacing(2, 1000.0, False)
    assert spacing(2, 100.0, False) > spacing(2, 1000.0, False)


def shapes(plan, degree: int) -> list[tuple[int, int, int]]:
    return [group.shapes[degree] for group in plan.groups if isinstance(group, MeshGroup)]


def test_a_plan_knows_of_each_system_whether_charges_lead():
    (one, charges), other = water(), random_multipoles(81, 1)
    batch = concatenate([one, one])
    coulomb = Coulomb(method="mesh")
    fine, coarse = (shapes(coulomb.prepare(one, charged=flag), 1)[0] for flag in (False, True))
    assert math.prod(fine) > math.prod(coarse)
    assert shapes(coulomb.prepare(batch, charged=torch.tensor([True, False])), 1) == [coarse, fine]
    # A call without a plan looks at the strengths: dipoles at and above the limit in one, none in the other.
    rms = float(charges.square().mean().sqrt())
    dipoles = other.dipoles / other.dipoles.square().sum(1).mean().sqrt() * LEADING[0] * rms
    for factor, expected in ((0.99, coarse), (1.01, fine)):
        given = Multipoles(charges.repeat(2), torch.cat((factor * dipoles, 0.0 * dipoles)))
        coulomb(batch, given, outputs="energy")
        assert shapes(coulomb.plan_of(batch, 1), 1) == [expected, coarse]
    with pytest.raises(ValueError, match="`charged` has the shape"):
        coulomb.prepare(batch, charged=torch.tensor([True, False, True]))


def test_a_kept_plan_is_made_anew_for_dipoles_alone_but_not_for_charges_that_come_back():
    batch, charges = water()
    dipoles = 0.2 * random_multipoles(81, 1).dipoles
    coulomb = Coulomb(method="mesh")
    plans = []
    for scale in (1.0, 0.0, 1.0):
        coulomb(batch, Multipoles(scale * charges, dipoles), outputs="energy")
        plans.append(coulomb.plan_of(batch, 1))
    assert plans[0] is not plans[1]
    assert plans[1] is plans[2]
    assert math.prod(shapes(plans[1], 1)[0]) > math.prod(shapes(plans[0], 1)[0])
