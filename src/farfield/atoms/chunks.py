"""Batches cut into parts that fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from farfield.atoms.batch import AtomicBatch


def chunks(batch: AtomicBatch, max_atoms: int) -> Iterator[AtomicBatch]:
    """Yield consecutive systems, as many at a time as have at most ``max_atoms`` atoms together.

    A batch that is small enough comes back as it is; parts of a larger one have lost their neighbours.

    Raises
    ------
    ValueError
        If ``max_atoms`` is below 1.
    """
    if max_atoms < 1:
        raise ValueError(f"`max_atoms` is {max_atoms} but must be at least 1")
    counts = batch.counts.tolist()
    if sum(counts) <= max_atoms or len(counts) == 1:
        yield batch
        return
    first_system = first_atom = 0
    while first_system < len(counts):
        last_system, atoms = first_system + 1, counts[first_system]
        while last_system < len(counts) and atoms + counts[last_system] <= max_atoms:
            atoms += counts[last_system]
            last_system += 1
        yield _slice(batch, slice(first_system, last_system), slice(first_atom, first_atom + atoms))
        first_system, first_atom = last_system, first_atom + atoms


def _slice(batch: AtomicBatch, systems: slice, atoms: slice) -> AtomicBatch:
    """Return some consecutive systems, without their neighbours."""

    def part(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[systems]

    return AtomicBatch(
        positions=batch.positions[atoms],
        numbers=batch.numbers[atoms],
        cell=batch.cell[systems],
        pbc=batch.pbc[systems],
        system=batch.system[atoms] - systems.start,
        total_charge=part(batch.total_charge),
        external_field=part(batch.external_field),
    )
