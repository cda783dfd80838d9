"""Structures: the way from ASE and back loses nothing, and what is unsound is refused by name."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write
from hypothesis import given
from hypothesis import strategies as st

from farfield.atoms.batch import concatenate
from farfield.atoms.neighbors import find_neighbors
from farfield.atoms.structures import check_structure, from_ase, read_structures, split_systems, to_ase


def structures() -> list[Atoms]:
    slab = bulk("NaCl", "rocksalt", a=5.6)
    slab.pbc = (True, True, False)
    return [molecule("H2O"), bulk("MgO", "rocksalt", a=4.2), slab, Atoms("H", positions=[[1, 2, 3]])]


@given(st.permutations(range(4)))
def test_there_and_back(order: list[int]) -> None:
    before = [structures()[i] for i in order]
    after = to_ase(from_ase(before))
    assert len(after) == len(before)
    for first, second in zip(before, after, strict=True):
        assert (first.numbers == second.numbers).all()
        assert (first.positions == second.positions).all()
        assert (first.cell[:] == second.cell[:]).all()
        assert (first.pbc == second.pbc).all()


def test_dtype_and_total_charge(dtype: torch.dtype) -> None:
    atoms = molecule("H2O")
    atoms.info["charge"] = -2
    batch = from_ase([atoms, atoms], dtype=dtype, total_charge="charge")
    assert batch.positions.dtype == batch.cell.dtype == dtype
    assert batch.total_charge is not None
    assert batch.total_charge.tolist() == [-2, -2]
    assert from_ase(atoms).total_charge is None
    assert from_ase(atoms, total_charge=1.0).total_charge is not None
    assert to_ase(batch)[1].info["total_charge"] == -2


def test_splitting_undoes_concatenation() -> None:
    singles = [find_neighbors(from_ase(atoms), 3.0) for atoms in structures()]
    parts = split_systems(concatenate(singles))
    assert len(parts) == len(singles)
    for part, single in zip(parts, singles, strict=True):
        assert torch.equal(part.positions, single.positions)
        assert torch.equal(part.system, single.system)
        assert part.neighbors is not None
        assert single.neighbors is not None
        for name in ("i", "j", "shifts"):
            assert torch.equal(getattr(part.neighbors, name), getattr(single.neighbors, name))
        assert part.neighbors.max_count == single.neighbors.max_count


def broken(**changes: Any) -> Atoms:
    atoms = bulk("MgO", "rocksalt", a=4.2)
    for name, value in changes.items():
        setattr(atoms, name, value)
    return atoms


def nan_position() -> Atoms:
    atoms = molecule("H2O")
    atoms.positions[1, 2] = np.nan
    return atoms


@pytest.mark.parametrize(
    ("atoms", "message"),
    [
        (nan_position(), r"position of atom 1 .*nan.* finite"),
        (Atoms("X", positions=[[0, 0, 0]]), r"atom 0 has atomic number 0"),
        (Atoms(numbers=[119], positions=[[0, 0, 0]]), r"atomic number 119"),
        (Atoms("H", positions=[[0, 0, 0]], cell=[5, 0, 5], pbc=True), r"axis 1 is periodic.*zero"),
        (
            Atoms("H", positions=[[0, 0, 0]], cell=[[4, 0, 0], [4, 0, 0], [0, 0, 4]], pbc=True),
            r"linearly dependent",
        ),
        (Atoms("H", positions=[[0, 0, 0]], cell=[np.inf, 1, 1]), r"cell .* finite"),
    ],
)
def test_unsound_structures_are_refused(atoms: Atoms, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_structure(atoms)
    with pytest.raises(ValueError, match=f"structure 1: .*{message}"):
        from_ase([molecule("H2O"), atoms])


def test_a_missing_charge_is_named() -> None:
    with pytest.raises(ValueError, match="'charge'"):
        from_ase(molecule("H2O"), total_charge="charge")


def test_reading(tmp_path: Path) -> None:
    write(tmp_path / "some.extxyz", structures())
    assert len(read_structures(tmp_path / "some.extxyz")) == 4
    (tmp_path / "some.extxyz.gz").write_bytes(gzip.compress((tmp_path / "some.extxyz").read_bytes()))
    assert len(read_structures(tmp_path / "some.extxyz.gz")) == 4


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.extxyz", b""),
        ("text.extxyz", b"this is no structure\nat all\n"),
        ("cut.extxyz", b"3\nProperties=species:S:1:pos:R:3\nO 0 0 0\nH 0 0"),
        ("binary.extxyz", bytes(range(256))),
        ("cut.extxyz.gz", gzip.compress(b"1\n\nH 0 0 0\n" * 500, mtime=0)[:40]),
        ("unknown.format", b"1\n"),
    ],
)
def test_unreadable_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_structures(tmp_path / name)


def test_missing_files_and_directories_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_structures(tmp_path / "nowhere.extxyz")
    with pytest.raises(ValueError, match="directory"):
        read_structures(tmp_path)
