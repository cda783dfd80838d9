"""What the card of a trained model says of its training."""

from __future__ import annotations

import pytest
import torch
from potential_structures import molecule

from farfield.training.export import common_charge


@pytest.mark.parametrize(
    ("charges", "common"), [([0.0, 0.0], 0.0), ([1.0, 1.0], 1.0), ([0.0, 1.0], None), ([0.0, None], None)]
)
def test_the_charge_that_all_systems_have(charges: list[float | None], common: float | None) -> None:
    given = [None if charge is None else torch.tensor([charge], dtype=torch.float64) for charge in charges]
    batches = [molecule(3, seed).replace(total_charge=charge) for seed, charge in enumerate(given)]
    assert common_charge(batches) == common
