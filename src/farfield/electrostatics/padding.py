"""Which atoms of a batch stand where in padded blocks of like systems, also where it is a rank's part of a whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Bool, Int
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.distributed import counts_of_ranks


@dataclass(frozen=True, eq=False)
class Census:
    """How many atoms each system has, and which of them the batch at hand holds.

    Attributes
    ----------
    total
        Atoms of each system on all ranks, shape (systems,).
    here
        Those of them in the batch, shape (systems,). All, without a process group.
    starts
        Index in the batch of the first of them, shape (systems,).
    before
        How many are on the ranks before, shape (systems,).
    divided
        Whether the batch is a part, of a process group.
    """

    total: Int[np.ndarray, " systems"]
    here: Int[np.ndarray, " systems"]
    starts: Int[np.ndarray, " systems"]
    before: Int[np.ndarray, " systems"]
    divided: bool


def take_census(batch: AtomicBatch, ranks: dist.ProcessGroup | None) -> Census:
    """Count the atoms of a batch, and those that the other ranks of a process group hold of its systems."""
    counts = batch.counts.cpu()
    here = counts.numpy()
    starts = np.cumsum(here) - here
    if ranks is None:
        return Census(total=here, here=here, starts=starts, before=np.zeros_like(here), divided=False)
    table = counts_of_ranks(counts, ranks).numpy()
    before = table[: dist.get_rank(ranks)].sum(0)
    return Census(total=table.sum(0), here=here, starts=starts, before=before, divided=True)


@dataclass(frozen=True, eq=False)
class Padding:
    """Where the atoms of some systems stand in a padded block (members, slots).

    Attributes
    ----------
    systems
        Which systems of the batch are the members, shape (members,).
    atoms
        Which atoms of the batch belong to them, in order, shape (group_atoms,).
    index
        Atom of each slot, shape (members, slots); empty slots point at some atom of the batch, in a divided one behind
        the last.
    mask
        1 where a slot holds an atom and 0 where it is empty, shape (members, slots).
    occupied
        Flat index of the slot of each of ``atoms``, shape (group_atoms,).
    whole_batch
        Whether the block is simply the batch reshaped: one group of systems of equal size.
    divided
        Whether the batch is a rank's part of a whole. It may hold no atom at all; and whatever it holds, a divided
        block is filled by the same steps, so that backward passes are the same on all ranks.
    """

    systems: Int[Tensor, " members"]
    atoms: Int[Tensor, " group_atoms"]
    index: Int[Tensor, "members slots"]
    mask: Bool[Tensor, "members slots"]
    occupied: Int[Tensor, " group_atoms"]
    whole_batch: bool
    divided: bool = False

    def gather(self, values: Tensor) -> Tensor:
        """Values of the atoms (atoms, …) as a padded block (members, slots, …), zero in the empty slots."""
        if self.whole_batch:
            return values.reshape(*self.index.shape, *values.shape[1:])
        if self.divided:  # not by torch.cat, which keeps no second derivatives of tensors of the shape (0,)
            values = torch.nn.functional.pad(values, (0, 0) * (values.ndim - 1) + (0, 1))
        block = values.index_select(0, self.index.reshape(-1)).reshape(*self.index.shape, *values.shape[1:])
        if self.divided:
            return block
        return block * self.mask.reshape(*self.mask.shape, *[1] * (values.ndim - 1)).to(values.dtype)

    def release(self, block: Tensor) -> Tensor:
        """Values (group_atoms, …) of the occupied slots of a padded block."""
        flat = block.reshape(-1, *block.shape[2:])
        return flat if self.whole_batch else flat.index_select(0, self.occupied)


def make_padding(members: list[int], census: Census, device: torch.device, *, with_others: bool = False) -> Padding:
    """Lay the atoms of some systems out in a block.

    Parameters
    ----------
    members
        The systems.
    census
        Atoms of all systems of the batch.
    device
        Where to put the tensors.
    with_others
        Leave room for the atoms that other ranks hold of the systems, before and behind those of the batch: blocks of
        all ranks then add up to the whole.
    """
    here, starts = census.here[members], census.starts[members]
    first = census.before[members] if with_others else np.zeros_like(here)
    # A block of a rank without atoms has an empty slot: sums over no slots are a trap in too many places.
    slots = max(1, int((census.total[members] if with_others else here).max()))
    offsets = np.arange(slots) - first[:, None]
    mask = (offsets >= 0) & (offsets < here[:, None])
    index = np.where(mask, starts[:, None] + offsets, int(census.here.sum()) if census.divided else 0)
    occupied = np.flatnonzero(mask)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Padding(
        systems=tensor(np.asarray(members, dtype=np.int64)),
        atoms=tensor(index.reshape(-1)[occupied].astype(np.int64)),
        index=tensor(index.astype(np.int64)),
        mask=tensor(mask),
        occupied=tensor(occupied.astype(np.int64)),
        whole_batch=bool(mask.all()) and len(members) == len(census.here) and not census.divided,
        divided=census.divided,
    )
