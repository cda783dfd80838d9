"""Charges that electronegative atoms draw from those they are bonded to, as a start for learned ones."""

import pytest
import torch
from torch.autograd import gradcheck

from farfield import LongRange
from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.atoms.electronegativity import PAULING
from farfield.atoms.neighbors import find_neighbors
from farfield.potentials.augmented import AugmentedPotential
from farfield.potentials.baselines import bond_increments
from farfield.potentials.cace import CACE


def system(positions, numbers, cell=None, cutoff=3.0):
    periodic = cell is not None
    batch = AtomicBatch(
        torch.tensor(positions, dtype=torch.float64),
        torch.tensor(numbers),
        torch.eye(3, dtype=torch.float64)[None] * (cell or 1.0),
        torch.tensor([[periodic] * 3]),
        torch.zeros(len(numbers), dtype=torch.int64),
        total_charge=torch.zeros(1, dtype=torch.float64),
    )
    return find_neighbors(batch, cutoff)


SMALL = {"n_bessel": 4, "n_radial": 3, "n_embedding": 2, "n_features": 8, "n_hidden": [8], "max_l": 1, "max_nu": 2}
WATER = [[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]]


def potential(**options):
    torch.manual_seed(0)
    backbone = CACE([1, 6, 8], 3.5, n_layers=0, **SMALL)
    return AugmentedPotential(backbone, LongRange(backbone.n_scalars, total_charge="constraint", **options)).double()


def test_a_bond_moves_the_difference_of_electronegativities():
    drawn = PAULING[8] - PAULING[1]
    found = bond_increments(system(WATER, [8, 1, 1]))
    torch.testing.assert_close(found, torch.tensor([-2 * drawn, drawn, drawn], dtype=torch.float64))
    # two waters at the distance of a hydrogen bond are two waters
    second = [[x + 2.8, y, z] for x, y, z in WATER]
    torch.testing.assert_close(bond_increments(system(WATER + second, [8, 1, 1] * 2)), found.repeat(2))
    # across the boundary of a cell
    shifted = [[x, y + 9.7, z] for x, y, z in WATER]
    torch.testing.assert_close(bond_increments(system(shifted, [8, 1, 1], cell=10.0)), found)


def test_bonds_break_smoothly():
    def pair(length):
        return bond_increments(system([[0.0, 0.0, 0.0], [length, 0.0, 0.0]], [6, 8]))[0]

    lengths = torch.linspace(1.2, 3.0, 181, dtype=torch.float64)
    values = torch.stack([pair(float(length)) for length in lengths])
    assert float(values[0]) == pytest.approx(PAULING[8] - PAULING[6])
    assert float(values[-1]) == 0.0
    assert bool((values.diff() <= 0).all())
    # steps of .01 Å over a fall within .5 Å: a kink would show as a jump of the slope
    assert float(values.diff().diff().abs().max()) < 0.01 * float(values.diff().abs().max()) * 20
    batch = system([[0.0, 0.0, 0.0], [1.8, 0.1, 0.0], [-1.3, 0.6, 0.9], [-0.5, 1.1, -0.4]], [6, 8, 8, 1])
    batch = concatenate([batch, system(WATER, [8, 1, 1])])

    def of(positions):
        return bond_increments(batch.replace(positions=positions))

    positions = batch.positions.clone().requires_grad_()
    assert gradcheck(of, positions, atol=1e-7)
    total = batch.sum_over_atoms(of(positions))
    torch.testing.assert_close(total, torch.zeros_like(total), atol=1e-12, rtol=0)


def test_learned_charges_are_added_and_forces_follow():
    batch = system([[0.0, 0.0, 0.0], [1.75, 0.1, 0.0], [-1.3, 0.6, 0.9], [-0.5, 1.1, -0.4]], [6, 8, 8, 1], cutoff=3.5)
    bare, based = potential(), potential(bond_charges=0.4)
    difference = based.multipoles(batch).charges - bare.multipoles(batch).charges
    torch.testing.assert_close(difference, 0.4 * bond_increments(batch))
    again = AugmentedPotential.from_config(based.config()).double()
    again.load_state_dict(based.state_dict())
    assert torch.equal(again(batch).energy, based(batch).energy)
    forces = based.predict(batch, forces=True).forces
    for atom, axis in ((0, 0), (1, 1), (3, 2)):
        step = torch.zeros_like(batch.positions)
        step[atom, axis] = 1e-4
        energies = [based(batch.replace(positions=batch.positions + s * step)).energy.item() for s in (1, -1)]
        assert float(forces[atom, axis]) == pytest.approx(-(energies[0] - energies[1]) / 2e-4, rel=1e-5, abs=1e-6)


def test_the_potential_looks_for_bonds_that_the_backbone_does_not_see():
    torch.manual_seed(0)
    backbone = CACE([1, 8], 2.0, n_layers=0, **SMALL)
    near = AugmentedPotential(backbone, LongRange(backbone.n_scalars, bond_charges=0.4))
    assert near.cutoff == near.receptive_radius == 3.0
    assert potential(bond_charges=0.4).cutoff == potential().cutoff == 3.5


def test_what_has_no_bonds_is_refused():
    water = system(WATER, [8, 1, 1], cutoff=2.0)
    with pytest.raises(ValueError, match="reach 2 Å but `bond_charges` need 3 Å"):
        bond_increments(water)
    with pytest.raises(ValueError, match="reach none"):
        bond_increments(water.replace(neighbors=None))
    with pytest.raises(ValueError, match=r"atomic numbers \[2\] have no electronegativity"):
        bond_increments(system(WATER, [8, 2, 1]))
