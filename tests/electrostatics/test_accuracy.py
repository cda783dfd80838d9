"""What `accuracy` promises: the relative RMS force error of water and molten salt, and what float32 keeps of it."""

from __future__ import annotations

import math

import pytest
import torch
from electrostatic_systems import (
    TRICLINIC,
    all_outputs,
    forces_and_strain,
    random_multipoles,
    random_system,
    salt,
    water,
)

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.cutoff import SWITCH_START, reduced_cutoff, self_factors, switch
from farfield.electrostatics.multipoles import Multipoles


def check_force_errors(smearing: float, accuracies: tuple[float, ...], batch: AtomicBatch, given: Multipoles) -> None:
    """Compare the forces of Ewald sums to converged ones."""
    _, exact, _ = forces_and_strain(Coulomb(smearing, accuracy=1e-11, method="ewald"), batch, given)
    for accuracy in accuracies:
        _, forces, _ = forces_and_strain(Coulomb(smearing, accuracy=accuracy, method="ewald"), batch, given)
        assert float((forces - exact).norm() / exact.norm()) < accuracy


def only(multipoles: Multipoles, order: int) -> Multipoles:
    """Multipoles of one order alone, charges neutral: their forces have the most at large k."""
    dipoles, quadrupoles = multipoles.dipoles, multipoles.quadrupoles
    if order == 0:
        return Multipoles(multipoles.charges - multipoles.charges.mean())
    none = torch.zeros_like(multipoles.charges)
    return Multipoles(none, dipoles if order == 1 else None, quadrupoles if order == 2 else None)


@pytest.mark.parametrize("make", [water, salt])
@pytest.mark.parametrize("order", [1, 2])
def test_force_error_of_dipoles_and_of_quadrupoles_alone(make, order):
    """Without charges, whose forces come from longer waves, the error is the largest."""
    batch, _ = make()
    multipoles = only(random_multipoles(batch.n_atoms), order)
    check_force_errors(1.0, (1e-2, 1e-4, 1e-6), batch, multipoles)


#: Cells of few σ: short along all axes, along two or one of them, and skewed.
SHORT_CELLS = {
    "cube": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
    "sheet": [[1.0, 0.0, 0.0], [-0.5, 0.866, 0.0], [0.0, 0.0, 6.0]],
    "needle": [[1.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 6.0]],
    "skewed": [[1.0, 0.0, 0.0], [2.4, 1.1, 0.0], [0.3, -1.2, 1.0]],
}


@pytest.mark.parametrize("shape", list(SHORT_CELLS))
@pytest.mark.parametrize("order", [0, 1, 2])
def test_force_error_in_cells_of_few_smearing_lengths(shape, order):
    """There the longest waves are short, and a cutoff for waves of all lengths leaves out a large share, or all."""
    for length in (1.5, 2.0, 2.5, 3.0, 4.0, 5.5):
        cell = length * torch.tensor(SHORT_CELLS[shape], dtype=torch.float64)
        for atoms, seed in ((2, 1), (6, 2)):
            batch, multipoles = random_system(atoms, cell, seed), random_multipoles(atoms, order, seed)
            if shape in ("sheet", "needle"):  # atoms in a plane or on a line: no forces but those of the short waves
                open_axes = torch.tensor([1.0, 0.0, 0.0] if shape == "needle" else [1.0, 1.0, 0.0])
                batch = batch.replace(positions=batch.positions * open_axes)
            for given in (only(multipoles, order), multipoles.replace(charges=only(multipoles, 0).charges)):
                check_force_errors(1.0, (1e-2, 1e-4), batch, given)


@pytest.mark.parametrize("periodic", [1, 2])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_force_error_of_slabs_and_wires(periodic, order):
    """Thin ones of short cells, and one as wide as a liquid's surface."""
    for length, width, atoms in ((2.0, 0.0, 4), (3.0, 2.0, 6), (9.0, 6.0, 60)):
        cell = torch.diag(torch.tensor([length] * periodic + [max(width, 1.0)] * (3 - periodic), dtype=torch.float64))
        batch, multipoles = random_system(atoms, cell, seed=periodic), random_multipoles(atoms, order, seed=4)
        if width == 0.0:
            batch = batch.replace(positions=batch.positions * (cell.diagonal() == length))
        batch = batch.replace(pbc=torch.tensor([[axis < periodic for axis in range(3)]]))
        for given in (only(multipoles, order), multipoles.replace(charges=only(multipoles, 0).charges)):
            check_force_errors(1.0, (1e-2, 1e-4), batch, given)


@pytest.mark.parametrize("make", [water, salt])
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("smearing", [0.7, 1.0, 1.5])
def test_force_error_stays_below_the_accuracy_asked_for(make, order, smearing):
    batch, charges = make()
    higher = random_multipoles(batch.n_atoms, order)
    multipoles = Multipoles(
        charges,
        None if higher.dipoles is None else 0.4 * higher.dipoles,
        None if higher.quadrupoles is None else 0.4 * higher.quadrupoles,
    )
    _, exact, _ = forces_and_strain(Coulomb(smearing, accuracy=1e-9), batch, multipoles)
    for accuracy in (1e-2, 1e-4, 1e-6):
        energy, forces, _ = forces_and_strain(Coulomb(smearing, accuracy=accuracy), batch, multipoles)
        error = float((forces - exact).norm() / exact.norm())
        assert error < 1.1 * accuracy
        # Nor wastefully: with the wave vectors of a fiftieth of the accuracy it would be far better.
        assert error > accuracy / 200.0


def test_switch_is_smooth_and_ends_at_the_cutoff():
    x = torch.tensor([0.0, SWITCH_START**2 - 1e-9, 1.0, 1.5], dtype=torch.float64)
    torch.testing.assert_close(switch(x), torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)
    inside = torch.linspace(0.5, 1.2, 400, dtype=torch.float64, requires_grad=True)
    value = switch(inside)
    assert bool((value.diff() <= 1e-12).all())
    for order in range(3):
        (value,) = torch.autograd.grad(value.sum(), inside, create_graph=True)
        edges = value[((inside - SWITCH_START**2).abs() < 2e-3) | ((inside - 1.0).abs() < 2e-3)]
        assert float(edges.detach().abs().max()) < 0.2 * float(value.detach().abs().max()), order


def test_self_factors_tend_to_one():
    for order in range(3):
        cutoffs = [reduced_cutoff(accuracy, order, 1.0, 1000) for accuracy in (1e-2, 1e-9)]
        loose, tight = self_factors(torch.tensor(cutoffs, dtype=torch.float64)).tolist()
        assert all(0.9 < factor < 1.0 for factor in loose)
        assert loose[0] > loose[1] > loose[2]
        assert all(abs(factor - 1.0) < 1e-7 for factor in tight)


def test_closer_accuracy_needs_a_longer_cutoff():
    cutoffs = [reduced_cutoff(accuracy, 0, 1.0, 100) for accuracy in (1e-2, 1e-4, 1e-8)]
    assert cutoffs == sorted(cutoffs)
    orders = [reduced_cutoff(1e-4, order, 1.0, 100) for order in range(3)]
    assert orders == sorted(orders)
    assert reduced_cutoff(1e-4, 0, 1.0, 2) > reduced_cutoff(1e-4, 0, 1.0, 100)


@pytest.mark.parametrize("box", [TRICLINIC, None], ids=["periodic", "open"])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_float32_keeps_forces(box, order):
    batch, multipoles = random_system(20, box, size=6.0), random_multipoles(20, order)
    coulomb = Coulomb(1.0, accuracy=1e-5)
    _, exact, strain = forces_and_strain(coulomb, batch, multipoles)
    single = Multipoles(
        *(p.float() for p in (multipoles.charges, multipoles.dipoles, multipoles.quadrupoles) if p is not None)
    )
    energy, forces, strain32 = forces_and_strain(coulomb, batch.to(dtype=torch.float32), single)
    assert forces.dtype == torch.float32
    assert energy.dtype == torch.float64
    assert float((forces - exact).norm() / exact.norm()) < 1e-5
    assert float((strain32 - strain).norm() / strain.norm()) < 1e-5
    for value, reference in zip(
        all_outputs(coulomb(batch.to(dtype=torch.float32), single)),
        all_outputs(coulomb(batch, multipoles)),
        strict=True,
    ):
        assert float((value - reference).norm() / reference.norm()) < 2e-5


def test_float32_far_from_the_origin_and_in_a_long_cell():
    """Phases of hundreds of turns, h·s with h near 100: rounding of positions is all that may be lost."""
    cell = torch.diag(torch.tensor([4.0, 4.0, 150.0], dtype=torch.float64))
    batch, multipoles = random_system(30, cell), random_multipoles(30, 0)
    rounded = batch.to(dtype=torch.float32)
    coulomb = Coulomb(1.0, accuracy=1e-5)
    _, exact, _ = forces_and_strain(coulomb, rounded.to(dtype=torch.float64), multipoles)
    _, forces, _ = forces_and_strain(coulomb, rounded, Multipoles(multipoles.charges.float()))
    assert float((forces - exact).norm() / exact.norm()) < 1e-5


def test_truncation_does_not_shift_the_energy():
    """Only the truncated part of the self-energy is taken off; the whole would shift the energy of a loose sum."""
    batch, charges = water()
    loose, tight = (float(Coulomb(1.0, accuracy=a)(batch, Multipoles(charges)).energy) for a in (1e-2, 1e-9))
    cutoff = torch.tensor(reduced_cutoff(1e-2, 0, 1.0, batch.n_atoms), dtype=torch.float64)
    missing = 1.0 - float(self_factors(cutoff)[0])
    whole = 14.4 / math.sqrt(2.0 * math.pi) * float((charges**2).sum()) * missing
    assert abs(loose - tight) < 0.2 * whole
