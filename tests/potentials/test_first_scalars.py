"""Charges that are made before any message."""

from __future__ import annotations

import pytest
import torch
from potential_structures import joined, molecule
from small_models import small_model

from farfield.potentials.long_range import LongRange


@pytest.mark.parametrize(("first", "local"), [(6, True), (None, False)])
def test_charges_from_the_first_scalars_know_only_atoms_within_the_cutoff(first: int | None, local: bool) -> None:
    """H beyond O's cutoff, but in reach of the H between them, moves: O's charge follows only through messages."""
    potential = small_model(layers=1, cutoff=2.0, dipoles=False, first_scalars=first).potential
    batch = joined([molecule(3, 0)], 2.0)
    line = torch.tensor([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [3.0, 0.0, 0.0]], dtype=torch.float64)
    batch = batch.replace(numbers=torch.tensor([8, 1, 1]), neighbors=None, positions=line.requires_grad_())
    charges = potential.multipoles(potential.add_neighbors(batch)).charges
    (slope,) = torch.autograd.grad(charges[0], line)
    assert slope[1].abs().max() > 1e-6
    assert bool((slope[2] == 0).all()) == local


def test_more_scalars_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="`first_scalars` is 13 but must lie between 1 and the 12 scalars"):
        LongRange(12, first_scalars=13)
