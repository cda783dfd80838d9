"""Inputs of mace-torch's models that know H, C and O, made by another way than the adapter's."""

from __future__ import annotations

import torch
from torch import Tensor

from farfield.atoms.batch import AtomicBatch

#: Atomic numbers that the models of the tests know.
ELEMENTS = [1, 6, 8]


def inputs_of(batch: AtomicBatch, head: int = 0) -> dict[str, Tensor]:
    """Inputs of a batch with neighbours."""
    pairs = batch.neighbors
    assert pairs is not None
    cells = batch.cell[batch.system[pairs.i]]
    unit_shifts = pairs.shifts.to(cells.dtype)
    return {
        "positions": batch.positions,
        "node_attrs": (batch.numbers[:, None] == torch.tensor(ELEMENTS)).to(batch.positions.dtype),
        "edge_index": torch.stack([pairs.i, pairs.j]),
        "shifts": (unit_shifts[:, None, :] @ cells)[:, 0],
        "unit_shifts": unit_shifts,
        "cell": batch.cell.reshape(-1, 3),
        "pbc": batch.pbc,
        "batch": batch.system,
        "ptr": torch.cat([torch.zeros(1, dtype=torch.int64), batch.counts.cumsum(0)]),
        "head": torch.full((batch.n_systems,), head),
    }
