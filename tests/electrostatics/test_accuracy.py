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

from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.cutoff import SWITCH_START, reduced_cutoff, self_factors, switch
from farfield.electrostatics.multipoles import Multipoles


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
        loose = self_factors(reduced_cutoff(1e-2, order, 1.0))
        assert all(0.9 < factor < 1.0 for factor in loose)
        assert loose[0] > loose[1] > loose[2]
        tight = self_factors(reduced_cutoff(1e-9, order, 1.0))
        assert all(abs(factor - 1.0) < 1e-7 for factor in tight)


def test_closer_accuracy_needs_a_longer_cutoff():
    cutoffs = [reduced_cutoff(accuracy, 0, 1.0) for accuracy in (1e-2, 1e-4, 1e-8)]
    assert cutoffs == sorted(cutoffs)
    assert reduced_cutoff(1e-4, 0, 1.0) < reduced_cutoff(1e-4, 1, 1.0) < reduced_cutoff(1e-4, 2, 1.0)


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
    missing = 1.0 - self_factors(reduced_cutoff(1e-2, 0, 1.0))[0]
    whole = 14.4 / math.sqrt(2.0 * math.pi) * float((charges**2).sum()) * missing
    assert abs(loose - tight) < 0.2 * whole
