"""What the solver refuses, and that the message names the culprit and the remedy."""

from __future__ import annotations

import pytest
import torch
from electrostatic_systems import TRICLINIC, one_system, random_multipoles, random_system

from farfield.atoms.batch import concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles

NAN = float("nan")


@pytest.mark.parametrize("smearing", [0.0, -0.1, NAN, float("inf"), torch.tensor([1.0, -1.0])])
def test_smearing_must_be_positive(smearing):
    with pytest.raises(ValueError, match="`smearing` is .* but must be positive"):
        Coulomb(smearing)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accuracy": 0.0}, "`accuracy` is 0.0 but must lie between"),
        ({"accuracy": NAN}, "`accuracy` is nan"),
        ({"background": "none"}, "`background` is 'none' but must be one of 'gaussian', 'point'"),
        ({"method": "pme"}, "`method` is 'pme' but must be one of"),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        Coulomb(**options)


def change_cell(row, values):
    def change(batch):
        cell = batch.cell.clone()
        cell[1, row] = torch.tensor(values, dtype=cell.dtype)
        return batch.replace(cell=cell)

    return change


def change_position(batch):
    positions = batch.positions.clone()
    positions[4, 1] = NAN
    return batch.replace(positions=positions)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (change_cell(2, [0.0, 0.0, 0.0]), ValueError, r"system 1 has a zero vector on axis 2 \(c\)"),
        (change_cell(0, [1.501, 7.0, 0.2]), ValueError, r"system 1 is degenerate.*independent"),
        (change_cell(0, [NAN, 0.0, 0.0]), ValueError, "`cell` of system 1 .* finite"),
        (change_position, ValueError, r"`positions` of atom 4 \(system 1\)"),
        (lambda b: b.replace(system=b.system.flip(0)), ValueError, "`system` must ascend"),
        (lambda b: b.replace(system=b.system + 1), ValueError, "`system` must ascend"),
        (lambda b: b.replace(cell=b.cell.float()), TypeError, "`cell` has the dtype torch.float32"),
        (lambda b: b.to(dtype=torch.float16), TypeError, "must be float32 or float64"),
    ],
)
def test_batches(change, error, message):
    batch = concatenate([random_system(3), random_system(3, TRICLINIC)])
    degenerate = change(batch)
    with pytest.raises(error, match=message):
        Coulomb().prepare(degenerate)


def test_open_systems_may_have_any_cell():
    batch = random_system(3).replace(cell=torch.full((1, 3, 3), NAN, dtype=torch.float64))
    assert bool(torch.isfinite(Coulomb()(batch, random_multipoles(3)).energy))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("positions", torch.zeros(3, 2)),
        ("cell", torch.zeros(3, 3)),
        ("pbc", torch.zeros(2, 3, dtype=torch.bool)),
        ("system", torch.zeros(4, dtype=torch.int64)),
    ],
)
def test_shapes_of_batches(name, value):
    batch = random_system(3)
    # Set behind the back of the run-time shape checks, which only tests have.
    object.__setattr__(batch, name, value)
    with pytest.raises(ValueError, match=f"`{name}` has the shape"):
        Coulomb().prepare(batch)


def test_values_of_multipoles():
    batch, good = random_system(3), random_multipoles(3)
    one = torch.eye(3, dtype=torch.float64)
    skew = torch.zeros(3, 3, 3, dtype=torch.float64)
    skew[2, 0, 1] = 0.1
    for wrong, message in (
        (good.replace(charges=good.charges * NAN), "`charges` of atom 0 .* finite"),
        (good.replace(dipoles=good.dipoles.index_fill(0, torch.tensor([1]), NAN)), "`dipoles` of atom 1"),
        (good.replace(quadrupoles=good.quadrupoles + 0.1 * one), "`quadrupoles` of atom 0 must be traceless"),
        (good.replace(quadrupoles=good.quadrupoles + skew), "`quadrupoles` of atom 2 must be symmetric"),
    ):
        with pytest.raises(ValueError, match=message):
            Coulomb()(batch, wrong)


def test_shapes_of_multipoles_with_a_plan_too():
    batch, good = random_system(3), random_multipoles(3)
    coulomb = Coulomb()
    for plan in (None, coulomb.prepare(batch)):
        for wrong, error, message in (
            (random_multipoles(4), ValueError, r"`charges` has the shape \(4,\) but must be \(3,\)"),
            (Multipoles(good.charges.float()), TypeError, "`charges` has the dtype torch.float32"),
        ):
            with pytest.raises(error, match=message):
                coulomb(batch, wrong, plan)


def test_plans_methods_and_outputs():
    small, large, periodic = random_system(2), random_system(3), random_system(2, TRICLINIC)
    coulomb = Coulomb()
    with pytest.raises(ValueError, match="`plan` was prepared for 3 atoms in 1 systems but the batch has 2 in 1"):
        coulomb(small, random_multipoles(2), coulomb.prepare(large))
    with pytest.raises(ValueError, match="`method` is 'open' but system 0 is periodic"):
        Coulomb(method="open").prepare(periodic)
    with pytest.raises(ValueError, match="`smearing` has 2 values but the batch has 1 systems"):
        Coulomb(torch.tensor([1.0, 1.0])).prepare(small)
    with pytest.raises(ValueError, match="`outputs` is 'forces'"):
        coulomb(small, random_multipoles(2), outputs="forces")
    with pytest.raises(ValueError, match="`order` is 3"):
        coulomb.operator(small, order=3)
    with pytest.raises(ValueError, match="order 2 but the operator was made for 1"):
        coulomb.operator(small, order=1)(random_multipoles(2))


def test_the_call_with_a_plan_does_not_look_at_values():
    """NaN positions pass through a frozen plan as NaN: looking for them would synchronize the device."""
    batch = random_system(2)
    plan = Coulomb().prepare(batch)
    broken = one_system(batch.positions * NAN)
    assert bool(torch.isnan(Coulomb()(broken, random_multipoles(2), plan).energy).all())
