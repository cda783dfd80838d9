"""Neighbour lists with a skin: found once with a margin, used until an atom has moved by half of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from farfield.atoms.batch import AtomicBatch, Neighbors
from farfield.atoms.neighbors import bond_vectors, find_neighbors


class SkinNeighbors:
    """Neighbours of one moving structure.

    The stored list holds the pairs within ``cutoff + skin``. What `within` gives are only those that are within the
    cutoff asked for at present positions: the very pairs that a fresh search would find, in an order of their own, so
    that results do not depend on the skin to the last bit, whatever a model does with pairs beyond its cutoff.

    Parameters
    ----------
    cutoff
        Largest cutoff that will be asked for (Å).
    skin
        Margin (Å); 0 searches anew whenever an atom has moved.

    Raises
    ------
    ValueError
        If ``cutoff`` is not positive or ``skin`` is negative.
    """

    def __init__(self, cutoff: float, skin: float) -> None:
        if not cutoff > 0:
            raise ValueError(f"`cutoff` is {cutoff} but must be positive (Å)")
        if not skin >= 0:
            raise ValueError(f"`skin` is {skin} but must not be negative (Å); 0 means a fresh list at every step")
        self.cutoff = cutoff
        self.skin = skin
        #: How often a list was searched for.
        self.builds = 0
        self._reference: AtomicBatch | None = None

    def within(self, batch: AtomicBatch, cutoff: float | None = None) -> AtomicBatch:
        """Return the batch of one structure with its neighbours within ``cutoff`` (by default the largest)."""
        cutoff = self.cutoff if cutoff is None else cutoff
        if self._reference is None or not self._still_good(self._reference, batch):
            # A margin for rounding, so that a pair at the very edge is not lost between two ways of measuring it.
            found = find_neighbors(batch, (self.cutoff + self.skin) * (1 + 1e-6))
            self._reference = found.replace(neighbors=in_order(found.neighbors))
            self.builds += 1
        stored = self._reference.neighbors
        if stored is None:
            raise ValueError("the stored list has no neighbours")
        with torch.no_grad():
            near = bond_vectors(batch.replace(neighbors=stored)).square().sum(dim=1) <= cutoff**2
        return batch.replace(neighbors=_selected(stored, near, cutoff))

    def _still_good(self, reference: AtomicBatch, batch: AtomicBatch) -> bool:
        same = (
            torch.equal(reference.numbers, batch.numbers)
            and torch.equal(reference.system, batch.system)
            and torch.equal(reference.pbc, batch.pbc)
            and torch.equal(reference.cell, batch.cell)
            and reference.positions.dtype == batch.positions.dtype
            and reference.positions.device == batch.positions.device
        )
        if not same:
            return False
        moved = (batch.positions - reference.positions).square().sum(dim=1)
        return bool((moved <= (0.5 * self.skin) ** 2).all())


def in_order(pairs: Neighbors | None) -> Neighbors:
    """Sort pairs by centre, neighbour and shift, so that sums over them round alike however they were found.

    Raises
    ------
    ValueError
        If there is no list.
    """
    if pairs is None:
        raise ValueError("there are no neighbours to sort: call find_neighbors first")
    columns = [pairs.shifts[:, 2], pairs.shifts[:, 1], pairs.shifts[:, 0], pairs.j, pairs.i]
    order = torch.from_numpy(np.lexsort([column.cpu().numpy() for column in columns])).to(pairs.i.device)
    return dataclasses.replace(pairs, i=pairs.i[order], j=pairs.j[order], shifts=pairs.shifts[order])


def _selected(stored: Neighbors, keep: Tensor, cutoff: float) -> Neighbors:
    return Neighbors.of_pairs(stored.i[keep], stored.j[keep], stored.shifts[keep], cutoff)
