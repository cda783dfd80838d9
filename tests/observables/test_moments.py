"""Dipoles and quadrupoles of a few point charges, known by hand; and what must not change them."""

import pytest
import torch
from fake_model import FakeModel, molecule
from scipy.spatial.transform import Rotation

from farfield.atoms.batch import concatenate
from farfield.electrostatics.multipoles import Multipoles
from farfield.observables import balanced_charges, dipole, dipole_moment, physical, polarization, quadrupole
from farfield.observables.moments import quadrupole_moment


def test_dipole_of_two_opposite_charges(close):
    batch = molecule(2)
    moment = dipole_moment(batch, Multipoles(torch.tensor([-0.7, 0.7], dtype=torch.float64)))
    close(moment[0], 0.7 * (batch.positions[1] - batch.positions[0]))


def test_quadrupole_of_a_linear_molecule(close):
    # −q, 2q, −q along z at distance d: the traceless second moment is −2 q d² diag(−1/3, −1/3, 2/3).
    q, d = 0.3, 1.2
    batch = molecule(3).replace(positions=torch.tensor([[0, 0, -d], [0, 0, 0], [0, 0, d]], dtype=torch.float64) + 5.0)
    moment = quadrupole_moment(batch, Multipoles(torch.tensor([-q, 2 * q, -q], dtype=torch.float64)))
    close(moment[0], -2 * q * d**2 * torch.diag(torch.tensor([-1 / 3, -1 / 3, 2 / 3])), rtol=1e-6)


def test_atomic_dipoles_and_quadrupoles_stand_for_point_charges(close):
    # A pair ±q close together is a dipole u = q δ and, about its middle, no quadrupole.
    batch = molecule(1).replace(positions=torch.tensor([[0.4, -0.2, 0.9]], dtype=torch.float64))
    u = torch.tensor([[0.3, -0.1, 0.2]], dtype=torch.float64)
    delta = 1e-3 * u / u.norm()
    pair = molecule(2).replace(positions=torch.cat([batch.positions + delta / 2, batch.positions - delta / 2]))
    charge = u.norm() / 1e-3
    split = Multipoles(torch.stack([charge, -charge]))
    close(dipole_moment(pair, split), dipole_moment(batch, Multipoles(torch.zeros(1).double(), u)))
    # about a common, different centre: add a far neutral atom to both
    far = torch.tensor([[9.0, 1.0, -3.0]], dtype=torch.float64)
    one = molecule(2).replace(positions=torch.cat([batch.positions, far]))
    two = molecule(4).replace(positions=torch.cat([pair.positions, far, far]))
    zero = torch.zeros(2, dtype=torch.float64)
    expected = quadrupole_moment(two, Multipoles(torch.cat([split.charges, zero])))
    found = quadrupole_moment(one, Multipoles(zero, torch.cat([u, torch.zeros(1, 3).double()])))
    centre = 0.5 * (one.positions.mean(0) - two.positions.mean(0))
    assert centre.norm() < 1e-9
    close(found, expected, atol=1e-6)


def test_balanced_charges_have_the_total_charge(close):
    batch = concatenate([molecule(4, charge=1.0), molecule(7, seed=1, charge=-2.0)])
    charges = torch.randn(11, dtype=torch.float64)
    close(batch.sum_over_atoms(balanced_charges(batch, charges)), batch.total_charge)
    unknown = batch.replace(total_charge=None)
    close(unknown.sum_over_atoms(balanced_charges(unknown, charges)), torch.zeros(2))


def test_dipole_of_a_neutral_system_does_not_depend_on_the_origin(close):
    model, batch = FakeModel(), molecule(6)
    moved = batch.replace(positions=batch.positions + torch.tensor([3.0, -7.0, 1.0]).double())
    close(dipole(model, moved), dipole(model, batch))
    close(quadrupole(model, moved), quadrupole(model, batch))
    close(polarization(model, moved), polarization(model, batch))


def test_dipole_of_an_ion_moves_with_its_charge(close):
    model, batch = FakeModel(), molecule(6, charge=2.0)
    shift = torch.tensor([3.0, -7.0, 1.0]).double()
    moved = batch.replace(positions=batch.positions + shift)
    close(dipole(model, moved) - dipole(model, batch), 2.0 * shift[None])
    close(dipole(model, moved, origin="centre"), dipole(model, batch, origin="centre"))


def test_moments_rotate_with_the_molecule(close):
    model, batch = FakeModel(), molecule(6)
    turn = torch.from_numpy(Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix())
    turn = turn @ torch.diag(torch.tensor([1.0, 1.0, -1.0]).double())  # a reflection too
    turned = batch.replace(positions=batch.positions @ turn.T)
    close(dipole(model, turned)[0], turn @ dipole(model, batch)[0])
    close(quadrupole(model, turned)[0], turn @ quadrupole(model, batch)[0] @ turn.T)
    trace = quadrupole(model, batch)[0].trace()
    close(trace, torch.zeros(()))


def test_scale_is_one_for_all_or_one_for_each(close):
    model = FakeModel()
    batch = concatenate([molecule(4), molecule(5, seed=1)])
    base = dipole(model, batch)
    close(dipole(model, batch, scale=-2.0), -2.0 * base)
    factor = torch.tensor([-1.0, 1.5], dtype=torch.float64)
    close(dipole(model, batch, scale=factor), factor[:, None] * base)
    with pytest.raises(ValueError, match="scale"):
        physical(batch, Multipoles(torch.zeros(9).double()), torch.ones(3).double())


def test_unknown_origin_is_refused():
    with pytest.raises(Exception, match="origin"):  # the type checks that tests run under refuse it before we do
        dipole_moment(molecule(2), Multipoles(torch.zeros(2).double()), origin="mass")
