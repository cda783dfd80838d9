"""Self-consistent response: a minimum, its derivatives to the third order, and what it says where there is none."""

from __future__ import annotations

import math

import pytest
import torch
from electrostatic_systems import random_multipoles, random_system, traceless
from response_systems import BOUNDARIES, across, functional, given, random_response, solver, system_of

from farfield.atoms.batch import concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.response import LinearResponse
from farfield.electrostatics.self_consistent import InducedSystem, ResponseError
from farfield.electrostatics.susceptibility import Response
from farfield.units import COULOMB_CONSTANT

FIELD = torch.tensor([[0.11, -0.07, 0.16]], dtype=torch.float64)


@pytest.mark.parametrize("boundary", BOUNDARIES)
@pytest.mark.parametrize("model", ["q+k", "q+A", "q+u+Q+k+A"])
def test_the_energy_is_that_of_the_functional_and_its_minimum(model, boundary, close):
    batch, (multipoles, response), solve = system_of(boundary), given(model), solver("scf")
    result = solve(batch, multipoles, response, external_field=FIELD)
    induced = result.induced

    def energy(moments):
        return functional(solve.coulomb, batch, multipoles, response, moments, FIELD[0])

    # induced quadrupole-order sums may end at another k than those of lower order
    tolerance = {"rtol": 1e-4 if multipoles.dipoles is None and boundary != "open" else 1e-9}
    close(result.energy[0] - result.field_energy[0], energy(induced), **tolerance)
    generator = torch.Generator().manual_seed(3)
    for size in (1e-1, 1e-2):
        charges = size * torch.randn(4, generator=generator, dtype=torch.float64)
        charges = (charges - charges.mean()) * (response.softness is not None)
        dipoles = None
        if induced.dipoles is not None:
            dipoles = induced.dipoles + size * torch.randn(4, 3, generator=generator, dtype=torch.float64)
            back = 2.0 * induced.dipoles - dipoles
        up = energy(Multipoles(induced.charges + charges, dipoles)) - energy(induced)
        down = energy(Multipoles(induced.charges - charges, None if dipoles is None else back)) - energy(induced)
        assert float(up) > 0
        # stationary: the same both ways
        close(up, down, rtol=1e-6, atol=3e-4 * size if model == "q+A" else 1e-7)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_one_shot_is_the_first_iterate_of_a_fixed_point(boundary, close):
    """Δq ← −κ(φ − F·r − μ), r along open directions, Δu ← α(E + F), with φ, E of all multipoles so far, from none."""
    batch, (multipoles, response) = system_of(boundary), given("q+u+k+a")
    kappa, alpha = 0.3 * response.softness, 0.3 * response.polarizability
    coulomb = Coulomb(1.0)
    charges, dipoles = torch.zeros(4, dtype=torch.float64), torch.zeros(4, 3, dtype=torch.float64)
    on_charges = batch.positions @ across(batch) @ FIELD[0]
    iterates = []
    for _ in range(60):
        result = coulomb(batch, Multipoles(multipoles.charges + charges, multipoles.dipoles + dipoles))
        potential = result.potential - on_charges
        charges = -kappa * (potential - (kappa * potential).sum() / kappa.sum())
        dipoles = alpha[:, None] * (result.field + FIELD)
        iterates.append((charges, dipoles))
    for mode, (charges, dipoles) in (("one-shot", iterates[0]), ("scf", iterates[-1])):
        result = solver(mode)(batch, multipoles, Response(kappa, alpha), external_field=FIELD)
        close(result.induced.charges, charges, rtol=1e-8)
        close(result.induced.dipoles, dipoles, rtol=1e-8)
    # and both agree to first order in the response
    weak = [
        solver(mode)(batch, multipoles, Response(1e-4 * kappa, 1e-4 * alpha)).response_energy
        for mode in ("one-shot", "scf")
    ]
    close(weak[0], weak[1], rtol=1e-3)


def _leaves(anisotropic: bool):
    cell = torch.tensor([[3.0, 0.3, 0.0], [-0.2, 3.2, 0.4], [0.3, 0.1, 2.9]], dtype=torch.float64)
    batch = concatenate([random_system(2, cell, seed=1), random_system(3, seed=2, size=2.0)])
    multipoles = random_multipoles(5, 2)
    response = random_response(5, True, "anisotropic" if anisotropic else "isotropic")
    alpha, kappa = response.polarizability.clone(), response.softness.clone()
    alpha[0], kappa[2] = 0.0, 0.0  # singular
    if anisotropic:
        direction = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
        alpha[3] = 0.02 * direction[:, None] * direction[None, :]
    field = torch.cat([FIELD, -2.0 * FIELD])
    leaves = [batch.positions, batch.cell, multipoles.charges, multipoles.dipoles, kappa, alpha, field]
    return batch, multipoles.quadrupoles, [leaf.clone().requires_grad_() for leaf in leaves]


@pytest.mark.parametrize("mode", ["one-shot", "scf"])
@pytest.mark.parametrize("anisotropic", [False, True])
@pytest.mark.parametrize("output", ["energy", "induced", "polarizability"])
def test_energy_and_induced_multipoles_are_twice_differentiable(mode, anisotropic, output):
    """In positions, cell, multipoles, κ, α (both singular for some atoms) and field; a bulk and an open system."""
    if output == "polarizability" and anisotropic == (mode == "scf"):
        pytest.skip("of four such checks two are enough")
    batch, quadrupoles, leaves = _leaves(anisotropic)
    solve = LinearResponse(Coulomb(1.0, accuracy=3e-2), mode=mode, tolerance=1e-13)
    plan = solve.coulomb.prepare(batch)

    def outcome(positions, cell, charges, dipoles, kappa, alpha, field):
        moved = batch.replace(positions=positions, cell=cell)
        if anisotropic:
            alpha = 0.5 * (alpha + alpha.mT)
        response = Response(kappa, alpha)
        if output == "polarizability":
            return solve.polarizability(moved, response, plan)
        multipoles = Multipoles(charges, dipoles, traceless(quadrupoles))
        result = solve(moved, multipoles, response, plan, external_field=field)
        return result.energy if output == "energy" else (result.induced.charges, result.induced.dipoles)

    if output == "polarizability":
        fixed = leaves[2:4] + leaves[6:]
        for leaf in fixed:
            leaf.requires_grad_(False)
    assert torch.autograd.gradcheck(outcome, leaves, fast_mode=True)
    if (output, mode) != ("polarizability", "scf"):  # takes half a minute, and is the same code as "induced"
        assert torch.autograd.gradgradcheck(outcome, leaves, fast_mode=True)


@pytest.mark.parametrize("mode", ["one-shot", "scf"])
def test_the_total_polarizability_is_the_sum_over_the_atoms(mode, close, monkeypatch):
    """With all first and second derivatives; and the first need no further solution, since it is stationary in it."""
    batch, _, leaves = _leaves(True)
    solve = LinearResponse(Coulomb(1.0), mode=mode, tolerance=1e-13)
    inputs = [leaves[0], leaves[1], leaves[4], leaves[5]]
    weights = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    solutions, solved = [], InducedSystem.solve
    monkeypatch.setattr(InducedSystem, "solve", lambda *given: solutions.append(1) or solved(*given))

    def slopes(total, twice):
        assert len(solutions) == (3 if mode == "scf" else 0)
        unused = {"allow_unused": True, "materialize_grads": True}  # one shot: positions and cell
        first = torch.autograd.grad((weights * total).square().sum(), inputs, create_graph=twice, **unused)
        if not twice:
            return first
        along = sum((slope * slope.detach().cos()).sum() for slope in first)
        return [*first, *torch.autograd.grad(along, inputs, **unused)]

    found = []
    for atomic, twice in ((False, False), (False, True), (True, True)):
        solutions.clear()
        positions, cell, kappa, alpha = inputs
        moved = batch.replace(positions=positions, cell=cell)
        response = Response(kappa, 0.5 * (alpha + alpha.mT))
        answer = solve.polarizability if atomic else solve.total_polarizability
        total = answer(moved, response)
        total = batch.sum_over_atoms(total) if atomic else total
        found.append([total, *slopes(total, twice)])
        if not twice:
            assert len(solutions) == (3 if mode == "scf" else 0)
    close(found[1][0], found[1][0].mT)
    for one, two in zip(found[0], found[1], strict=False):
        close(one, two, rtol=1e-9, atol=1e-11)
    for one, two in zip(found[1], found[2], strict=True):
        close(one, two, rtol=1e-8, atol=1e-10)


def test_a_loss_on_the_polarizability_has_the_same_gradient_both_ways(close):
    """Third derivatives of the energy are right: −∂²E/∂F∂F is differentiated like the explicit polarizability."""
    batch, quadrupoles, leaves = _leaves(True)
    positions, cell, charges, dipoles, kappa, alpha, field = leaves
    solve = LinearResponse(Coulomb(1.0), mode="scf", tolerance=1e-13)
    moved = batch.replace(positions=positions, cell=cell)
    symmetric = 0.5 * (alpha + alpha.mT)
    result = solve(moved, Multipoles(charges, dipoles, quadrupoles), Response(kappa, symmetric), external_field=field)
    (by_field,) = torch.autograd.grad(result.energy.sum(), field, create_graph=True)
    rows = [-torch.autograd.grad(by_field[:, a].sum(), field, create_graph=True)[0] for a in range(3)]
    from_energy = torch.stack(rows, 1)
    explicit = batch.sum_over_atoms(solve.polarizability(moved, Response(kappa, symmetric), order=2))
    close(from_energy, explicit, rtol=1e-8)
    generator = torch.Generator().manual_seed(4)
    weights = torch.randn(2, 3, 3, generator=generator, dtype=torch.float64)
    wanted = [positions, cell, kappa, alpha]
    slopes = [torch.autograd.grad((weights * a).sum(), wanted, retain_graph=True) for a in (from_energy, explicit)]
    for one, other in zip(*slopes, strict=True):
        close(one, other, rtol=1e-6, atol=1e-9)


def test_forces_alone_cost_no_second_solution():
    """The energy is stationary: its first derivatives need no solution of the adjoint equations."""
    batch, (multipoles, response) = system_of("open"), given("q+u+k+a")
    batch = batch.replace(positions=batch.positions.requires_grad_())
    applied = []
    solve = solver("scf")
    result = solve(batch, multipoles, response)
    original = type(solve.coulomb.operator(batch)).potential

    def counted(self, given_multipoles):
        applied.append(1)
        return original(self, given_multipoles)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("farfield.electrostatics.operator.CoulombOperator.potential", counted)
        torch.autograd.grad(result.energy.sum(), batch.positions)
    assert not applied


def test_no_minimum_and_no_convergence_are_errors_that_name_the_system():
    """Two dipoles that polarize each other without end, beside a harmless system."""
    pair = torch.tensor([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0]], dtype=torch.float64)
    good = random_system(2, seed=3)
    bad = good.replace(positions=pair)
    batch = concatenate([good, bad])
    multipoles = random_multipoles(4, 1)
    solve = LinearResponse(Coulomb(1.0), mode="scf")
    for response in (
        Response(None, torch.tensor([0.1, 0.1, 2.0, 2.0], dtype=torch.float64)),
        Response(torch.tensor([0.01, 0.01, 0.9, 0.9], dtype=torch.float64), None),
    ):
        with pytest.raises(ResponseError, match="system 1 have no minimum.*Lower softness"):
            solve(batch, multipoles, response)
    strong = Response(None, torch.full((4,), 0.25, dtype=torch.float64))
    with pytest.raises(ResponseError, match="have not converged after 1 steps.*max_iterations"):
        LinearResponse(Coulomb(1.0), mode="scf", max_iterations=1)(batch, multipoles, strong)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_below_the_bounds_there_is_always_a_minimum(boundary):
    """κ < √(2π)σ/(2k_e) and α < 3√(2π)σ³/(2k_e), however close the atoms are.

    The interactions −2π|z| and −2 ln ρ of slabs and wires are positive for charges that add up to zero only.
    """
    for sigma in (0.7, 1.0):
        kappa = 0.98 * math.sqrt(2.0 * math.pi) * sigma / (2.0 * COULOMB_CONSTANT)
        alpha = 0.98 * 3.0 * math.sqrt(2.0 * math.pi) * sigma**3 / (2.0 * COULOMB_CONSTANT)
        batch = system_of(boundary, 12)
        batch = batch.replace(positions=0.4 * batch.positions)
        response = Response(torch.full((12,), kappa).double(), torch.full((12,), alpha).double())
        solve = LinearResponse(
            Coulomb(sigma), mode="scf", max_iterations=2000, conserve_charge=boundary in ("slab", "wire")
        )
        assert float(solve(batch, random_multipoles(12, 1), response).residual) < 1e-8


@pytest.mark.parametrize("mode", ["one-shot", "scf"])
def test_training_on_forces_is_the_same_on_the_mesh(mode):
    """Second derivatives through the solution: gradients of a loss on forces and induced dipoles, mesh as Ewald."""
    generator = torch.Generator().manual_seed(6)
    cell = torch.tensor([[5.0, 0.3, 0.0], [-0.4, 5.4, 0.2], [0.3, 0.1, 5.7]], dtype=torch.float64)
    batch = random_system(5, cell, seed=4)
    weights = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    gradients = []
    for method in ("ewald", "mesh"):
        multipoles, response = random_multipoles(5, 1), random_response(5, True, "isotropic")
        leaves = [batch.positions, batch.cell, multipoles.charges, response.softness, response.polarizability]
        positions, box, charges, kappa, alpha = leaves = [leaf.clone().requires_grad_() for leaf in leaves]
        solve = LinearResponse(Coulomb(1.0, accuracy=1e-7, method=method), mode=mode, tolerance=1e-11)
        moved = batch.replace(positions=positions, cell=box)
        result = solve(moved, multipoles.replace(charges=charges), Response(kappa, alpha))
        (slope,) = torch.autograd.grad(result.energy.sum(), positions, create_graph=True)
        loss = (weights * slope).sum() + (weights * result.induced.dipoles).sum()
        gradients.append(torch.autograd.grad(loss, leaves))
    for ewald, mesh in zip(*gradients, strict=True):
        assert float((mesh - ewald).norm()) < 1e-4 * float(ewald.norm())
