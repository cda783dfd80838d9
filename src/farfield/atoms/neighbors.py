"""Neighbour lists, from vesin."""

from __future__ import annotations

import numpy as np
import torch

from farfield.atoms.batch import AtomicBatch, Neighbors


def find_neighbors(batch: AtomicBatch, cutoff: float) -> AtomicBatch:
    """Return the batch with all pairs of neighbours within ``cutoff`` (Å).

    The pairs are found by vesin, system by system, on the CPU, once; they carry no gradient. Along non-periodic axes
    the cell is ignored.

    Raises
    ------
    ValueError
        If ``cutoff`` is not positive.
    """
    import vesin

    if not cutoff > 0:
        raise ValueError(f"`cutoff` is {cutoff} but must be positive (Å)")
    positions = batch.positions.detach().to("cpu", torch.float64).numpy()
    cells = batch.cell.detach().to("cpu", torch.float64).numpy()
    pbc = batch.pbc.cpu().numpy()
    counts = batch.counts.cpu().numpy()
    finder = vesin.NeighborList(cutoff=float(cutoff), full_list=True, sorted=True)

    parts_i, parts_j, parts_shifts = [], [], []
    start = 0
    for index, count in enumerate(counts):
        box = cells[index] * pbc[index][:, None]
        i, j, shifts = finder.compute(
            points=positions[start : start + count],
            box=np.ascontiguousarray(box),
            periodic=[bool(axis) for axis in pbc[index]],
            quantities="ijS",
        )
        parts_i.append(i.astype(np.int64) + start)
        parts_j.append(j.astype(np.int64) + start)
        parts_shifts.append(shifts.astype(np.int64))
        start += count

    device = batch.positions.device
    i = np.concatenate(parts_i) if parts_i else np.zeros(0, dtype=np.int64)
    j = np.concatenate(parts_j) if parts_j else i
    shifts = np.concatenate(parts_shifts) if parts_shifts else np.zeros((0, 3), np.int64)
    # counted where the pairs are found: elsewhere it would wait for the device
    found = Neighbors.of_pairs(torch.from_numpy(i), torch.from_numpy(j), torch.from_numpy(shifts), cutoff)
    return batch.replace(neighbors=found.to(device))


def with_neighbors(batch: AtomicBatch, cutoff: float) -> AtomicBatch:
    """Return the batch with neighbours within ``cutoff`` (Å); a list of that cutoff that is there already is kept."""
    pairs = batch.neighbors
    return batch if pairs is not None and pairs.cutoff == cutoff else find_neighbors(batch, cutoff)


def neighbors_within(batch: AtomicBatch, cutoff: float, needed: str) -> Neighbors:
    """Return the neighbours of a batch, which have to reach as far as something needs.

    Parameters
    ----------
    batch
        The batch.
    cutoff
        How far they must reach (Å).
    needed
        What needs them, for the message.

    Raises
    ------
    ValueError
        If the batch has no neighbours, or only nearer ones.
    """
    pairs = batch.neighbors
    if pairs is None or pairs.cutoff < cutoff:
        reach = "none" if pairs is None else f"{pairs.cutoff:g} Å"
        raise ValueError(
            f"`batch.neighbors` reach {reach} but {needed}: call find_neighbors(batch, {cutoff:g}) or more"
        )
    return pairs


def bond_vectors(batch: AtomicBatch) -> torch.Tensor:
    """Vectors from centre to neighbour (Å), shape (pairs, 3), differentiable in positions and cell.

    Raises
    ------
    ValueError
        If the batch has no neighbours.
    """
    pairs = batch.neighbors
    if pairs is None:
        raise ValueError("`batch.neighbors` is None: call farfield.atoms.find_neighbors(batch, cutoff) first")
    vectors = batch.positions[pairs.j] - batch.positions[pairs.i]
    if not batch.pbc.any():
        return vectors
    shifts = pairs.shifts.to(vectors.dtype)
    if batch.n_systems == 1:
        return vectors + shifts @ batch.cell[0]
    return vectors + torch.einsum("ps,psc->pc", shifts, batch.cell[batch.system[pairs.i]])
