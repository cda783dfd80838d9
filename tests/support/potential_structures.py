"""Random structures that the tests of this room share."""

from __future__ import annotations

import torch

from farfield.atoms import AtomicBatch, concatenate, find_neighbors


def molecule(n: int = 7, seed: int = 0, dtype: torch.dtype = torch.float64) -> AtomicBatch:
    """Open cluster of H, C, O without very close atoms."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.zeros(0, 3, dtype=dtype)
    while len(positions) < n:
        trial = torch.rand(1, 3, generator=generator, dtype=dtype) * n ** (1 / 3) * 1.8
        if len(positions) == 0 or torch.cdist(trial, positions).min() > 0.9:
            positions = torch.cat([positions, trial])
    return AtomicBatch(
        positions=positions,
        numbers=torch.tensor([1, 6, 8])[torch.randint(3, (n,), generator=generator)],
        cell=torch.zeros(1, 3, 3, dtype=dtype),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
        system=torch.zeros(n, dtype=torch.int64),
        total_charge=torch.zeros(1, dtype=dtype),
    )


def crystal(n: int = 6, seed: int = 0, left_handed: bool = False, dtype: torch.dtype = torch.float64) -> AtomicBatch:
    """Triclinic periodic cell."""
    batch = molecule(n, seed, dtype)
    cell = torch.tensor([[4.6, 0.3, -0.2], [0.5, 4.9, 0.4], [-0.6, 0.2, 5.1]], dtype=dtype)
    if left_handed:
        cell = cell[[1, 0, 2]]
    return batch.replace(cell=cell[None], pbc=torch.ones(1, 3, dtype=torch.bool))


def joined(batches: list[AtomicBatch], cutoff: float) -> AtomicBatch:
    """One batch with neighbours."""
    return find_neighbors(concatenate(batches), cutoff)
