"""Derivatives: finite differences of energy and stress, through k-shells too, and gradcheck of every output."""

from __future__ import annotations

import pytest
import torch
from electrostatic_systems import (
    TRICLINIC,
    all_outputs,
    forces_and_strain,
    parts,
    random_multipoles,
    random_system,
    take,
    traceless,
)

from farfield.atoms.batch import concatenate
from farfield.electrostatics import open_charges
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.cutoff import SHORT, SWITCH_START
from farfield.electrostatics.multipoles import Multipoles

LEFT_HANDED = TRICLINIC[[1, 0, 2]]
BOXES = {"triclinic": TRICLINIC, "left-handed": LEFT_HANDED, "open": None}


@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("background", ["gaussian", "point"])
def test_forces_and_strain_derivative_by_finite_differences(box, order, background):
    coulomb = Coulomb(1.0, accuracy=1e-3, background=background)
    batch, multipoles = random_system(4, BOXES[box]), random_multipoles(4, order)
    _, forces, strain = forces_and_strain(coulomb, batch, multipoles)
    step = 1e-4

    def energy(positions, cell):
        moved = batch.replace(positions=positions, cell=cell)
        return float(coulomb(moved, multipoles, outputs="energy").energy)

    for atom, axis in ((0, 0), (1, 2), (3, 1)):
        shift = torch.zeros_like(batch.positions)
        shift[atom, axis] = step
        change = energy(batch.positions + shift, batch.cell) - energy(batch.positions - shift, batch.cell)
        assert -change / (2 * step) == pytest.approx(float(forces[atom, axis]), rel=1e-6, abs=1e-6)
    for row, column in ((0, 0), (0, 1), (2, 1), (2, 2)):
        deformation = torch.zeros(3, 3, dtype=torch.float64)
        deformation[row, column] = step
        one = torch.eye(3, dtype=torch.float64)
        plus = energy(batch.positions @ (one + deformation), batch.cell @ (one + deformation))
        minus = energy(batch.positions @ (one - deformation), batch.cell @ (one - deformation))
        assert (plus - minus) / (2 * step) == pytest.approx(float(strain[0, row, column]), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("order", [0, 2])
@pytest.mark.parametrize("edge", [4.6, 6.5, 8.1])
def test_energy_force_and_stress_are_smooth_through_k_shells(order, edge):
    """In a sweep of the cell, vectors k enter the sum one shell after another; nothing may jump.

    Nor when the cutoff changes with a short cell, and when lattice vectors become too long to change it.
    """
    coulomb = Coulomb(1.0, accuracy=1e-2)
    cell = torch.eye(3, dtype=torch.float64) * edge
    batch, multipoles = random_system(5, cell), random_multipoles(5, order)
    trials = torch.linspace(1.0, 1.3, 61, dtype=torch.float64)
    ranges = [coulomb.prepare(batch.replace(cell=batch.cell * t)).groups[0].ranges[order] for t in trials]
    crossing = float(trials[next(index for index, found in enumerate(ranges) if found != ranges[0])])
    # From well before the shell enters the cutoff until it has passed the switch.
    coarse = crossing * torch.linspace(0.94, 1.03 / SWITCH_START, 41, dtype=torch.float64)
    fine = crossing * torch.linspace(0.94, 1.03 / SWITCH_START, 81, dtype=torch.float64)
    if edge > SHORT:
        assert edge * coarse[0] < SHORT
    sizes = set()

    def sweep(scales):
        energies, forces, strains = [], [], []
        for scale in scales:
            scaled = batch.replace(positions=batch.positions * scale, cell=batch.cell * scale)
            sizes.add(coulomb.prepare(scaled).groups[0].ranges[order])
            energy, force, strain = forces_and_strain(coulomb, scaled, multipoles)
            energies.append(energy)
            forces.append(force.flatten())
            strains.append(strain.flatten())
        return [torch.stack(series) for series in (energies, forces, strains)]

    wide, close = sweep(coarse), sweep(fine)
    assert len(sizes) >= 2, "the sweep must cross a shell"
    for rough, smooth in zip(wide, close, strict=True):
        # Second differences of a smooth function fall as the square of the step, those of a jump not at all.
        assert float(smooth.diff(n=2, dim=0).abs().max()) < 0.4 * float(rough.diff(n=2, dim=0).abs().max())
    # And the stress is the derivative of the energy all along: Simpson's rule gives back the energy.
    pressure = close[2][:, [0, 4, 8]].sum(1) / fine
    step = fine[1] - fine[0]
    work = step / 3.0 * (pressure[0:-1:2] + 4.0 * pressure[1::2] + pressure[2::2]).sum()
    assert float(work) == pytest.approx(float(close[0][-1, 0] - close[0][0, 0]), rel=1e-5)


@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("outputs", ["all", "energy"])
def test_every_output_is_twice_differentiable(order, outputs):
    """In positions, cell and multipoles, for a batch of an open and two periodic systems of different sizes."""
    cell = torch.tensor([[3.0, 0.3, 0.0], [-0.2, 3.2, 0.4], [0.3, 0.1, 2.9]], dtype=torch.float64)
    batch = concatenate(
        [random_system(2, cell, seed=1), random_system(2, seed=2, size=2.0), random_system(1, cell * 1.1)]
    )
    multipoles = random_multipoles(5, order)
    coulomb = Coulomb(torch.tensor([0.9, 1.0, 1.1]), accuracy=3e-2, background="point")
    plan = coulomb.prepare(batch)

    def outcome(positions, cell, *given):
        given = [*given[:2], *(traceless(q) for q in given[2:])]
        result = coulomb(batch.replace(positions=positions, cell=cell), Multipoles(*given), plan, outputs)
        return tuple(all_outputs(result))

    leaves = [t.clone().requires_grad_() for t in (batch.positions, batch.cell, *parts(multipoles))]
    assert torch.autograd.gradcheck(outcome, leaves, fast_mode=order > 0)
    assert torch.autograd.gradgradcheck(outcome, leaves, fast_mode=True)


@pytest.mark.parametrize("block", [1 << 15, 16, 3], ids=["one-block", "systems", "rows"])
def test_open_charges_in_blocks(block, monkeypatch):
    """The closed forms of open charges, to the third derivative, however their pairs are cut into blocks."""
    monkeypatch.setattr(open_charges, "_BLOCK", {"cpu": block})
    generator = torch.Generator().manual_seed(3)
    positions = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    charges = torch.randn(2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    smearing = torch.tensor([0.8, 1.1], dtype=torch.float64)

    def energy(positions, charges):
        return open_charges.open_charge_energy(positions, charges, smearing)

    def slopes(positions, charges):
        return torch.autograd.grad((energy(positions, charges) ** 2).sum(), (positions, charges), create_graph=True)

    assert torch.autograd.gradcheck(energy, (positions, charges))
    assert torch.autograd.gradgradcheck(energy, (positions, charges))
    assert torch.autograd.gradgradcheck(slopes, (positions, charges), fast_mode=True)


def test_potential_field_and_gradient_are_derivatives_of_the_energy(close):
    coulomb = Coulomb(0.9, accuracy=1e-3)
    for box in BOXES.values():
        batch, multipoles = random_system(5, box), random_multipoles(5)
        leaves = [part.clone().requires_grad_() for part in parts(multipoles)]
        result = coulomb(batch, Multipoles(*leaves))
        by_charge, by_dipole, by_quadrupole = torch.autograd.grad(result.energy.sum(), leaves)
        close(result.potential, by_charge)
        close(result.field, -by_dipole)
        close(result.field_gradient, -2.0 * traceless(by_quadrupole))


def test_operator_is_linear_and_self_adjoint(close):
    """⟨m, A m'⟩ = ⟨m', A m⟩, and A(m + 2m') = A m + 2 A m'."""
    coulomb = Coulomb(1.0, accuracy=1e-3)
    batch = concatenate([random_system(4, TRICLINIC), random_system(3)])
    operator = coulomb.operator(batch)
    left, right = random_multipoles(7, seed=1), random_multipoles(7, seed=2)

    def product(m, outcome):
        potential, field, gradient = outcome
        return (m.charges * potential).sum() - (m.dipoles * field).sum() - 0.5 * (m.quadrupoles * gradient).sum()

    close(product(left, operator(right)), product(right, operator(left)))
    both = Multipoles(*(a + 2.0 * b for a, b in zip(parts(left), parts(right), strict=True)))
    for joint, a, b in zip(operator(both), operator(left), operator(right), strict=True):
        close(joint, a + 2.0 * b)
    close(0.5 * product(left, operator(left)), coulomb(batch, left).energy.sum())
    charges = take(Multipoles(left.charges), slice(None))
    close(operator(charges)[0], operator(Multipoles(left.charges, 0 * left.dipoles, 0 * left.quadrupoles))[0])
