"""Plans that are kept from call to call: reused only where they are what a new one would be."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from electrostatic_systems import TRICLINIC, random_multipoles, random_system

from farfield.electrostatics.coulomb import Coulomb

SLAB = torch.tensor([[True, True, False]])


@pytest.fixture
def counted(monkeypatch):
    """A solver and a list that grows with each plan it makes."""
    coulomb, made = Coulomb(), []
    prepare = coulomb.prepare

    def count(batch, *options):
        made.append(batch)
        return prepare(batch, *options)

    monkeypatch.setattr(coulomb, "prepare", count)
    return coulomb, made


def test_a_plan_serves_while_systems_and_cells_stay(counted):
    coulomb, made = counted
    batch, multipoles = random_system(4, TRICLINIC), random_multipoles(4)
    coulomb(batch, multipoles)
    moved = batch.replace(positions=batch.positions + 0.3)
    assert torch.equal(coulomb(moved, multipoles).energy, Coulomb()(moved, multipoles).energy)
    assert len(made) == 1
    for other in (
        batch.replace(cell=batch.cell * 1.001),
        batch.replace(pbc=~batch.pbc),
        random_system(4, TRICLINIC[[1, 0, 2]]),
    ):
        before = len(made)
        assert torch.equal(coulomb(other, multipoles).energy, Coulomb()(other, multipoles).energy)
        assert len(made) == before + 1
    coulomb(random_system(5, TRICLINIC), random_multipoles(5))
    assert made[-1].n_atoms == 5


def test_a_plan_serves_for_multipoles_of_the_same_order(counted):
    """Another order may be summed faster in another way; a method that is given leaves no choice."""
    coulomb, made = counted
    batch = random_system(4, TRICLINIC)
    for order, plans in ((0, 1), (0, 1), (2, 2), (2, 2)):
        coulomb(batch, random_multipoles(4, order))
        assert len(made) == plans
    coulomb.method = "ewald"
    for order in (2, 0, 1):
        coulomb(batch, random_multipoles(4, order))
        assert len(made) == 3


def test_a_slab_that_outgrows_its_plan_gets_another(counted):
    coulomb, made = counted
    batch, multipoles = random_system(4, TRICLINIC).replace(pbc=SLAB), random_multipoles(4)
    coulomb(batch, multipoles)
    coulomb(batch.replace(positions=batch.positions * 1.01), multipoles)
    assert len(made) == 1
    coulomb(batch.replace(positions=batch.positions * 3.0), multipoles)
    assert len(made) == 2


def test_values_are_still_checked(counted):
    coulomb, _ = counted
    batch, multipoles = random_system(4, TRICLINIC), random_multipoles(4)
    coulomb(batch, multipoles)
    with pytest.raises(ValueError, match="`positions` of atom 0"):
        coulomb(batch.replace(positions=batch.positions * float("nan")), multipoles)
    with pytest.raises(ValueError, match="`charges` of atom 0"):
        coulomb(batch, multipoles.replace(charges=multipoles.charges * float("nan")))


def test_a_change_in_place_is_seen(counted):
    coulomb, made = counted
    batch, multipoles = random_system(4, TRICLINIC), random_multipoles(4)
    coulomb(batch, multipoles)
    batch.cell.mul_(1.1)
    coulomb(batch, multipoles)
    assert len(made) == 2


@pytest.mark.parametrize("method", ["ewald", "mesh"])
def test_a_change_of_memory_that_torch_does_not_know_of_is_seen(method):
    edges = 9.0 * np.eye(3)
    batch, multipoles = random_system(20, torch.from_numpy(edges)), random_multipoles(20)
    batch, coulomb = batch.replace(cell=torch.from_numpy(edges)[None]), Coulomb(method=method)
    before = coulomb(batch, multipoles).energy
    edges *= 1.3
    assert float((coulomb(batch, multipoles).energy - before).abs()) > 1e-3
    torch.testing.assert_close(coulomb(batch, multipoles).energy, Coulomb(method=method)(batch, multipoles).energy)


def test_a_plan_made_in_inference_mode_is_not_kept():
    coulomb, batch, multipoles = Coulomb(), random_system(4, TRICLINIC), random_multipoles(4)
    with torch.inference_mode():
        coulomb(batch, multipoles)
    positions = batch.positions.clone().requires_grad_()
    energy = coulomb(batch.replace(positions=positions), multipoles).energy.sum()
    (slope,) = torch.autograd.grad(energy, positions, create_graph=True)
    slope.square().sum().backward()
    assert positions.grad is not None


@pytest.mark.parametrize(("name", "value"), [("accuracy", 1e-9), ("smearing", 0.7), ("method", "mesh")])
def test_a_setting_that_is_changed_makes_another_plan(name, value):
    coulomb, batch, multipoles = Coulomb(), random_system(4, TRICLINIC), random_multipoles(4)
    before = float(coulomb(batch, multipoles).energy)
    setattr(coulomb, name, value)
    after = float(coulomb(batch, multipoles).energy)
    assert after == float(Coulomb(**{name: value})(batch, multipoles).energy) != before


def test_smearings_changed_in_place_make_another_plan():
    coulomb = Coulomb(torch.tensor([1.0], dtype=torch.float64))
    batch, multipoles = random_system(4, TRICLINIC), random_multipoles(4)
    coulomb(batch, multipoles)
    coulomb.smearing.mul_(0.7)
    assert torch.equal(coulomb(batch, multipoles).energy, Coulomb(coulomb.smearing)(batch, multipoles).energy)


def test_copies_have_no_plan():
    coulomb = Coulomb()
    coulomb(random_system(4, TRICLINIC), random_multipoles(4))
    assert coulomb._kept is not None
    assert copy.deepcopy(coulomb)._kept is None
