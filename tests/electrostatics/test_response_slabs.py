"""Induced charges of slabs and wires in a field along their open directions: capacitors, limits, invariances."""

from __future__ import annotations

import math

import pytest
import torch
from electrostatic_systems import one_system, random_multipoles, random_system
from response_systems import BOUNDARIES, MODES, across, given, random_response, solver, system_of

from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.response import LinearResponse
from farfield.electrostatics.susceptibility import Response
from farfield.units import COULOMB_CONSTANT

#: Periodic axes of each kind.
PERIODIC = {"slab": (True, False, True), "wire": (False, False, True)}


def _capacitor(kind: str, distance: float = 6.0):
    """Two parallel planes or lines of atoms, so dense that they are smooth, and the vector from one to the other."""
    cell = torch.tensor([[1.2, 0.1, 0.0], [3.0, 9.0, -2.0], [0.5, 0.3, 1.1]], dtype=torch.float64)
    if kind == "wire":
        cell[0] = torch.tensor([2.0, 0.3, 8.0], dtype=torch.float64)  # open, and no normal of the wire
    batch = one_system(torch.zeros(2, 3, dtype=torch.float64), cell).replace(pbc=torch.tensor([PERIODIC[kind]]))
    normal = across(batch) @ torch.tensor([0.3, 1.0, 0.2], dtype=torch.float64)
    arm = distance * normal / normal.norm()
    return batch.replace(positions=torch.stack((torch.zeros_like(arm), arm + 0.4 * cell[2]))), arm


@pytest.mark.parametrize("method", ["ewald", "mesh"])
@pytest.mark.parametrize("kind", PERIODIC)
def test_a_capacitor_charges_as_electrostatics_says(kind, method):
    """∂P/∂F = d²/(2/κ' + C⁻¹) along d, nothing across.

    1/κ' = 1/κ − 2k_e/(√(2π)σ) is what it costs to charge an atom, less the self-interaction, which smooth planes have
    and atoms do not. Two planes of Gaussians a distance d ≫ σ apart have C⁻¹ = 4πk_e (d − σ√(2/π))/A; two lines, whose
    potential is −2k_e/L (ln ρ + ½E₁(ρ²/2σ²)), C⁻¹ = 4k_e/L (ln d − ½(ln 2σ² − γ)).
    """
    batch, arm = _capacitor(kind)
    kappa, sigma, distance = 0.02, 0.9, 6.0
    solve = LinearResponse(Coulomb(sigma, accuracy=1e-7, method=method), mode="scf", tolerance=1e-11)
    found = solve.polarizability(batch, Response(torch.full((2,), kappa, dtype=torch.float64))).sum(0)
    cell = batch.cell[0]
    if kind == "slab":
        area = float(torch.linalg.cross(cell[0], cell[2]).norm())
        inverse_capacity = 4.0 * math.pi * COULOMB_CONSTANT / area * (distance - sigma * math.sqrt(2.0 / math.pi))
    else:
        euler = 0.5772156649015329
        logarithm = math.log(distance) - 0.5 * (math.log(2.0 * sigma**2) - euler)
        inverse_capacity = 4.0 * COULOMB_CONSTANT / float(cell[2].norm()) * logarithm
    cost = 2.0 / kappa - 4.0 * COULOMB_CONSTANT / (math.sqrt(2.0 * math.pi) * sigma)
    expected = arm[:, None] * arm[None, :] / (cost + inverse_capacity)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-5 * float(expected.trace()))
    # one shot, atoms do not know of each other
    alone = LinearResponse(Coulomb(sigma)).polarizability(batch, Response(torch.full((2,), kappa).double())).sum(0)
    torch.testing.assert_close(alone, 0.5 * kappa * arm[:, None] * arm[None, :], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", PERIODIC)
def test_a_molecule_in_a_large_cell_is_the_open_molecule_among_the_dipoles_of_its_images(kind):
    """Along open directions: α' = (α⁻¹ + k_e T)⁻¹ by scf, T of a square lattice or a chain; α' = α in one shot."""
    length = 24.0
    molecule = random_system(4, seed=3, size=2.5)
    cell = torch.eye(3, dtype=torch.float64) * length
    boxed = molecule.replace(cell=cell[None], pbc=torch.tensor([PERIODIC[kind]]))
    opened = across(boxed)
    response = random_response(4, True, "anisotropic")
    if kind == "slab":
        # Σ R⁻³ over the square lattice is 4 ζ(3/2) β(3/2) (I. J. Zucker, J. Phys. A 7, 1568 (1974))
        normal = 4.0 * 2.6123753486854883 * 0.8645026534612020
        tensor = 1.5 * normal * opened - 0.5 * normal * torch.eye(3)
    else:
        along = 2.0 * 1.2020569031595943  # Σ |n|⁻³
        tensor = 3.0 * along * opened - 2.0 * along * torch.eye(3)
    for mode in MODES:
        solve = LinearResponse(Coulomb(1.0, accuracy=1e-6), mode=mode, tolerance=1e-11)
        free, found = (solve.polarizability(b, response).sum(0) for b in (molecule, boxed))
        expected = opened @ free @ opened
        images = torch.zeros(3, 3, dtype=torch.float64)
        if mode == "scf":
            among = torch.linalg.inv(torch.linalg.inv(free) + COULOMB_CONSTANT / length**3 * tensor)
            images = opened @ among @ opened - expected
            assert float(images.norm()) > 5e-4 * float(free.norm())
        torch.testing.assert_close(
            opened @ found @ opened - expected, images, rtol=0.0, atol=0.03 * float(images.norm()) + 1e-10
        )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", PERIODIC)
def test_neither_the_origin_nor_vacuum_nor_images_matter(kind, mode, close):
    """Neutral systems anywhere, with any open cell vectors, atoms in any cell; charged ones feel −Q F·t."""
    batch, (multipoles, response), solve = system_of(kind), given("q+u+k+a"), solver(mode)
    field = torch.tensor([[0.11, -0.07, 0.16]], dtype=torch.float64)

    def outcome(changed, charge):
        total = torch.tensor([charge], dtype=torch.float64)
        found = solve(changed, multipoles, response, external_field=field, total_charge=total)
        return found.energy, found.induced.charges, found.induced.dipoles, solve.polarizability(changed, response)

    opened, cell = across(batch), batch.cell[0]
    shift = torch.tensor([3.0, -17.0, 8.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    axes = torch.tensor(PERIODIC[kind])
    wider = torch.where(axes[:, None], cell, 20.0 * torch.randn(3, 3, generator=generator, dtype=torch.float64))
    images = torch.randint(-2, 3, (4, 3), generator=generator).double() * axes
    here = outcome(batch, 0.0)
    for changed in (
        batch.replace(positions=batch.positions + shift),
        batch.replace(cell=wider[None]),
        batch.replace(positions=batch.positions + images @ cell),
    ):
        for one, other in zip(here, outcome(changed, 0.0), strict=True):
            close(one, other, rtol=1e-7, atol=1e-8)
    there, here = (
        solve(b, multipoles, response, external_field=field, total_charge=torch.tensor([0.7])).energy
        for b in (batch.replace(positions=batch.positions + shift), batch)
    )
    close(there - here, -0.7 * (shift @ opened @ field[0])[None], rtol=1e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", PERIODIC)
def test_the_normal_may_point_anywhere(kind, mode, close):
    """Cell vectors in any order, everything turned: the same energy, what has directions turned."""
    batch, (multipoles, response), solve = system_of(kind), given("q+u+Q+k+A"), solver(mode)
    field = torch.tensor([[0.11, -0.07, 0.16]], dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    here = solve(batch, multipoles, response, external_field=field)
    answer = solve.polarizability(batch, response)
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        turned = batch.replace(
            positions=batch.positions @ turn.T, cell=batch.cell[:, order] @ turn.T, pbc=batch.pbc[:, order]
        )
        moments = multipoles.replace(
            dipoles=multipoles.dipoles @ turn.T, quadrupoles=turn @ multipoles.quadrupoles @ turn.T
        )
        strengths = response.replace(polarizability=turn @ response.polarizability @ turn.T)
        there = solve(turned, moments, strengths, external_field=field @ turn.T)
        close(there.energy, here.energy, rtol=1e-7)
        close(there.induced.charges, here.induced.charges, rtol=1e-6, atol=1e-8)
        close(there.induced.dipoles, here.induced.dipoles @ turn.T, rtol=1e-6, atol=1e-8)
        # by what the sums leave out, which a wire's open directions, chosen anew, share otherwise
        close(solve.polarizability(turned, strengths), turn @ answer @ turn.T, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", PERIODIC)
def test_the_mesh_agrees_with_ewald_in_a_field(kind, mode):
    batch, response = system_of(kind, 6), random_response(6, True, "isotropic")
    field = torch.tensor([[0.4, -0.3, 0.5]], dtype=torch.float64)
    outcomes = []
    for method in ("ewald", "mesh"):
        solve = LinearResponse(Coulomb(1.0, accuracy=1e-6, method=method), mode=mode, tolerance=1e-11)
        positions = batch.positions.clone().requires_grad_()
        result = solve(batch.replace(positions=positions), random_multipoles(6, 1), response, external_field=field)
        (slope,) = torch.autograd.grad(result.energy.sum(), positions)
        answer = solve.polarizability(batch, response).sum(0)
        outcomes.append((result.energy, slope, result.induced.charges, result.induced.dipoles, answer))
    for ewald, mesh in zip(*outcomes, strict=True):
        assert float((mesh - ewald).detach().norm()) < 1e-5 * float(ewald.detach().norm())


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_field_along_periodic_directions_leaves_charges_alone(boundary, close):
    """There, and everywhere in bulk, one-shot charges are those without a field, and have no part in −∂²E/∂F∂F."""
    batch, (multipoles, response), solve = system_of(boundary), given("q+k"), solver("one-shot")
    along = torch.eye(3, dtype=torch.float64) - across(batch)
    field = (torch.tensor([[0.4, -0.3, 0.5]], dtype=torch.float64) @ along).requires_grad_()
    there, here = (solve(batch, multipoles, response, external_field=f) for f in (field, None))
    close(there.energy, here.energy)
    close(there.induced.charges, here.induced.charges)
    (by_field,) = torch.autograd.grad(there.energy.sum(), field)
    close(by_field @ along, torch.zeros(1, 3))
    close(along @ solve.polarizability(batch, response).sum(0), torch.zeros(3, 3))
