"""From files of structures to batches with labels.

A `Sample` is a batch of systems with its labels, a `Dataset` a list of samples of one system each. Names, units and
index orders of the labels are stated once, on reading; afterwards everything is in farfield's own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.atoms.neighbors import with_neighbors
from farfield.atoms.structures import from_ase, read_structures
from farfield.datasets.fragments import Fragments, fragments_of, join_fragments
from farfield.datasets.quantities import INTERACTIONS, Columns, Conventions, Units
from farfield.datasets.registry import DATASETS, resolve_data

if TYPE_CHECKING:
    from ase import Atoms

#: Labels by name: shape of one system's label, with -1 for its atoms.
LABEL_SHAPES: dict[str, tuple[int, ...]] = {
    "energy": (),
    "forces": (-1, 3),
    "stress": (3, 3),
    "dipole": (3,),
    "quadrupole": (3, 3),
    "charges": (-1,),
    "born_charges": (-1, 3, 3),
    "polarizability": (3, 3),
    "interaction_energy": (),
    "interaction_forces": (-1, 3),
}

#: Labels that stay in float64, being sums over many atoms.
IN_FLOAT64 = ("energy", "interaction_energy")


@dataclass(frozen=True, eq=False)
class Sample:
    """Some systems and what is known of them.

    Attributes
    ----------
    batch
        The systems.
    labels
        Any of ``energy`` (systems,) in float64, ``forces`` (atoms, 3), ``stress`` (systems, 3, 3), ``dipole``
        (systems, 3), ``quadrupole`` (systems, 3, 3), ``charges`` (atoms,), ``born_charges`` (atoms, 3, 3) with the
        polarization index first, ``polarizability`` (systems, 3, 3), in farfield's units (polarizabilities in Å³);
        ``interaction_energy`` (systems,) in float64 and ``interaction_forces`` (atoms, 3): of the whole, less those of
        its fragments.
    fragments
        The fragments of the systems that have such labels.
    """

    batch: AtomicBatch
    labels: dict[str, Tensor]
    fragments: Fragments | None = None

    def to(self, device: torch.device | str | None = None) -> Sample:
        """Return the sample on another device."""
        fragments = None if self.fragments is None else self.fragments.to(device)
        return Sample(self.batch.to(device), {name: value.to(device) for name, value in self.labels.items()}, fragments)


def collate(samples: Sequence[Sample]) -> Sample:
    """Lay samples end to end into one.

    Raises
    ------
    ValueError
        If there are no samples, or some have a label that others lack.
    """
    batch = concatenate([sample.batch for sample in samples])
    names = set(samples[0].labels)
    for sample in samples:
        if set(sample.labels) != names:
            odd = sorted(names ^ set(sample.labels))
            raise ValueError(f"the labels {odd} are given for some systems of a batch only: give them for all or none")
    labels = {name: torch.cat([sample.labels[name] for sample in samples]) for name in sorted(names)}
    return Sample(batch, labels, join_fragments([(sample.batch, sample.fragments) for sample in samples]))


class Dataset:
    """Samples of one system each, neighbours included, held in memory.

    Parameters
    ----------
    samples
        One sample for each system.
    name
        Where they come from, for messages.
    info
        What the file says beside of each system: ``atoms.info``.
    """

    def __init__(self, samples: Sequence[Sample], name: str = "data", info: Sequence[dict[str, Any]] = ()) -> None:
        self.samples = list(samples)
        self.name = name
        self.info = list(info) if info else [{} for _ in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def subset(self, indices: Sequence[int]) -> Dataset:
        """Return the samples of these indices, in this order."""
        return Dataset([self.samples[i] for i in indices], self.name, [self.info[i] for i in indices])

    def with_neighbors(self, cutoff: float) -> Dataset:
        """Return the set with neighbours within ``cutoff`` (Å); lists that are there already are kept."""
        samples = []
        for sample in self.samples:
            apart = None if sample.fragments is None else sample.fragments.with_neighbors(cutoff)
            samples.append(Sample(with_neighbors(sample.batch, cutoff), sample.labels, apart))
        return Dataset(samples, self.name, self.info)

    @property
    def elements(self) -> list[int]:
        """Atomic numbers that occur, ascending."""
        return sorted({int(z) for sample in self.samples for z in torch.unique(sample.batch.numbers)})

    @property
    def labels(self) -> set[str]:
        """Names of the labels that every system has."""
        return set.intersection(*(set(sample.labels) for sample in self.samples)) if self.samples else set()

    def batches(self, size: int) -> Iterator[Sample]:
        """Yield the set in order, ``size`` systems at a time."""
        for start in range(0, len(self.samples), size):
            yield collate(self.samples[start : start + size])


def _lookup(atoms: Atoms, names: Sequence[str]) -> Any:
    results = atoms.calc.results if atoms.calc is not None else {}
    for name in names:
        for place in (results, atoms.info, atoms.arrays):
            if name in place:
                return place[name]
    return None


def _label(value: Any, quantity: str, n_atoms: int, factor: float, conventions: Conventions, where: str) -> Tensor:
    """One label in farfield's units and index order; per-system labels get a leading axis of length one."""
    array = _numeric(value, quantity, where)
    if quantity == "stress" and array.shape == (6,):
        xx, yy, zz, yz, xz, xy = array  # ASE's Voigt order
        array = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    shape = tuple(n_atoms if size == -1 else size for size in LABEL_SHAPES[quantity])
    if array.size != int(np.prod(shape)):
        raise ValueError(f"{where}: the label {quantity!r} has shape {array.shape}, but must have {shape}")
    array = array.reshape(shape) * factor
    if quantity == "born_charges" and conventions.born_charges == "displacement-first":
        array = np.swapaxes(array, 1, 2)
    if quantity == "stress" and conventions.stress == "compressive":
        array = -array
    tensor = torch.tensor(array)
    return tensor if LABEL_SHAPES[quantity][:1] == (-1,) else tensor[None]


def _answer_of_bulk(value: Any, batch: AtomicBatch, where: str) -> Tensor:
    """Polarizability (Å³) of one cell, V (ε − 1)/4π, from a label of its ε: the answer to the macroscopic field."""
    array = _numeric(value, "epsilon_infinity", where)
    if array.size == 1:
        array = array.reshape(()) * np.eye(3)
    if array.size != 9:
        raise ValueError(f"{where}: the label 'epsilon_infinity' has shape {array.shape}, but must have (3, 3) or ()")
    volume = torch.linalg.det(batch.cell[0].double()).abs()
    return (volume / (4.0 * math.pi) * torch.tensor(array.reshape(3, 3) - np.eye(3)))[None]


def _numeric(value: Any, quantity: str, where: str) -> np.ndarray:
    """Values of a label, which have to be finite numbers."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: the label {quantity!r} is not numeric ({value!r})") from error
    if not np.isfinite(array).all():
        raise ValueError(f"{where}: the label {quantity!r} is not finite: remove the frame or the column")
    return array


def label_structures(
    structures: Sequence[Atoms],
    *,
    columns: Columns | None = None,
    units: Units | None = None,
    conventions: Conventions | None = None,
    dtype: torch.dtype = torch.float64,
    total_charge: str | float | None = None,
    fragments: bool = False,
    name: str = "data",
) -> Dataset:
    """Turn ASE structures into samples with labels.

    Parameters
    ----------
    structures
        ASE structures whose calculator results, info and arrays hold the labels.
    columns, units, conventions
        Names, units and index orders of the labels; by default those of farfield's shared files.
    dtype
        Floating-point type of positions and labels; energies stay in float64.
    total_charge
        Key of ``atoms.info`` with the total charge (e), where the model is to know it; or a number, that of all.
    fragments
        Read interaction energies and forces, too, and the fragments that they are about.
    name
        Where the structures come from, for messages.

    Raises
    ------
    ValueError
        If a structure or a label is unsound; the error names the frame.
    """
    columns, units, conventions = columns or Columns(), units or Units(), conventions or Conventions()
    factors = {quantity: units.factor(quantity) for quantity in LABEL_SHAPES}
    scale = units.factor("positions")
    samples, info = [], []
    for index, atoms in enumerate(structures):
        where = f"{name}, frame {index}"
        try:
            batch = from_ase(atoms, dtype=dtype, total_charge=total_charge)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if scale != 1.0:
            batch = batch.replace(positions=batch.positions * scale, cell=batch.cell * scale)
        labels = {}
        for quantity in LABEL_SHAPES:
            if quantity in INTERACTIONS and not fragments:
                continue
            value = _lookup(atoms, getattr(columns, quantity))
            if value is not None:
                label = _label(value, quantity, len(atoms), factors[quantity], conventions, where)
                labels[quantity] = label if quantity in IN_FLOAT64 else label.to(dtype)
        if "polarizability" not in labels and bool(batch.pbc.all()):
            epsilon = _lookup(atoms, columns.epsilon_infinity)
            if epsilon is not None:
                labels["polarizability"] = _answer_of_bulk(epsilon, batch, where).to(dtype)
        apart = fragments_of(atoms, batch, where) if labels.keys() & {*INTERACTIONS} else None
        samples.append(Sample(batch, labels, apart))
        info.append(dict(atoms.info))
    return Dataset(samples, name, info)


def select_frames(
    info: Sequence[dict[str, Any]],
    *,
    where: dict[str, Any] | None = None,
    sort: str | None = None,
    per: str | None = None,
    first: int | None = None,
    last: int | None = None,
    name: str = "data",
) -> list[int]:
    """Return the indices of some frames, chosen by what their info says.

    Parameters
    ----------
    info
        ``atoms.info`` of each frame.
    where
        Keys and values that a frame must have.
    sort
        Key by which frames are sorted, ascending.
    per
        Key whose values make groups; ``first`` and ``last`` count within each group.
    first, last
        Number of frames to keep from the front or the back.

    Raises
    ------
    ValueError
        If a frame lacks a key, or nothing is left.
    """
    for key in (*(where or {}), *filter(None, (sort, per))):
        if any(key not in entry for entry in info):
            known = sorted(set.intersection(*(set(entry) for entry in info))) if info else []
            raise ValueError(f"{name}: not every frame has the key {key!r} in its info; keys that all have: {known}")
    chosen = [i for i, entry in enumerate(info) if all(entry[key] == value for key, value in (where or {}).items())]
    if sort is not None:
        chosen.sort(key=lambda i: info[i][sort])
    groups: dict[Any, list[int]] = {}
    for i in chosen:
        groups.setdefault(info[i][per] if per else None, []).append(i)
    kept = []
    for group in groups.values():
        front = group[:first] if first is not None else []
        back = group[max(len(group) - last, 0) :] if last is not None else []
        kept += group if first is None and last is None else sorted({*front, *back}, key=group.index)
    if not kept:
        raise ValueError(f"{name}: no frames are left by where={where}, first={first}, last={last}")
    return kept


def read_set(
    data: str | Path, columns: Columns | None = None, units: Units | None = None
) -> tuple[list[Atoms], Columns | None, Units | None]:
    """Read the structures of a registered set or a file, and say how to read their labels.

    Parameters
    ----------
    data
        Registry name (``dipeptides/train``) or path.
    columns, units
        As they were asked for; where they are None, those of the registry's entry are returned, if there is one.

    Raises
    ------
    FileNotFoundError
        If there is neither such a file nor such a set.
    ValueError
        If the file cannot be read.
    """
    entry = DATASETS.get(str(data))
    path = resolve_data(data)
    if entry is not None:
        columns = columns if columns is not None else Columns.model_validate(entry.columns)
        units = units if units is not None else Units.model_validate(entry.units)
    return read_structures(path), columns, units


def load_dataset(
    data: str | Path,
    *,
    columns: Columns | None = None,
    units: Units | None = None,
    conventions: Conventions | None = None,
    dtype: torch.dtype = torch.float64,
    total_charge: str | float | None = None,
    fragments: bool = False,
    select: dict[str, Any] | None = None,
) -> Dataset:
    """Read a registered set or a file into samples with labels.

    Parameters
    ----------
    data
        Registry name (``dipeptides/train``) or path.
    columns, units, conventions
        Names, units and index orders of the labels. By default those of the registry's entry, else of the shared
        files.
    dtype, total_charge, fragments
        See `label_structures`.
    select
        Arguments of `select_frames`.

    Raises
    ------
    FileNotFoundError
        If there is neither such a file nor such a set.
    ValueError
        If the file cannot be read or a frame is unsound.
    """
    structures, columns, units = read_set(data, columns, units)
    if select:
        kept = select_frames([atoms.info for atoms in structures], name=str(data), **select)
        structures = [structures[i] for i in kept]
    return label_structures(
        structures,
        columns=columns,
        units=units,
        conventions=conventions,
        dtype=dtype,
        total_charge=total_charge,
        fragments=fragments,
        name=str(data),
    )
