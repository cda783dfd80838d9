"""Neighbour lists with a skin give what a fresh search gives, and are searched for as seldom as promised."""

import pytest
import torch
from fake_model import crystal, molecule

from farfield.atoms.neighbors import find_neighbors
from farfield.engines.skin import SkinNeighbors, in_order


def same_pairs(one, other):
    a, b = one.neighbors, in_order(other.neighbors)
    assert torch.equal(a.i, b.i)
    assert torch.equal(a.j, b.j)
    assert torch.equal(a.shifts, b.shifts)
    assert (a.cutoff, a.max_count) == (b.cutoff, b.max_count)


@pytest.mark.parametrize("start", [crystal(30), molecule(12), crystal(20, pbc=(True, False, True)), molecule(1)])
@pytest.mark.parametrize("skin", [0.0, 0.4, 1.5])
def test_pairs_are_those_of_a_fresh_search_along_a_walk(start, skin):
    lists, batch = SkinNeighbors(4.0, skin), start
    generator = torch.Generator().manual_seed(1)
    for step in range(12):
        same_pairs(lists.within(batch), find_neighbors(batch, 4.0))
        same_pairs(lists.within(batch, 2.5), find_neighbors(batch, 2.5))
        if step == 5:
            assert lists.builds == {0.0: 6, 0.4: lists.builds, 1.5: 1}[skin]
        walk = 0.04 * torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
        batch = batch.replace(positions=batch.positions + walk)


def test_list_is_made_anew_when_an_atom_has_moved_by_half_the_skin():
    lists, batch = SkinNeighbors(3.0, 1.0), crystal()
    lists.within(batch)
    for moved, builds in ((0.49, 1), (0.51, 2)):
        positions = batch.positions.clone()
        positions[4, 1] += moved
        lists.within(batch.replace(positions=positions))
        assert lists.builds == builds


def test_list_is_made_anew_when_the_structure_is_another():
    lists, batch = SkinNeighbors(3.0, 1.0), crystal()
    others = [
        batch.replace(cell=batch.cell * 1.001),
        batch.replace(pbc=torch.tensor([[True, True, False]])),
        batch.replace(numbers=batch.numbers.flip(0)),
        crystal(11),
        crystal(11).to(dtype=torch.float32),
    ]
    for builds, other in enumerate([batch, *others], start=1):
        lists.within(other)
        lists.within(other)
        assert lists.builds == builds


def test_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="skin"):
        SkinNeighbors(3.0, -0.1)
    with pytest.raises(ValueError, match="cutoff"):
        SkinNeighbors(0.0, 1.0)
