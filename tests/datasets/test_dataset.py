"""Data sets: labels in farfield's units and index orders, choices of frames, and what is refused."""

from __future__ import annotations

from pathlib import Path

import ase.units
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from hypothesis import given
from hypothesis import strategies as st
from small_training import clusters, write_clusters

from farfield.datasets.dataset import Dataset, collate, label_structures, load_dataset, select_frames
from farfield.datasets.quantities import INTERACTIONS, OWN_UNITS, Columns, Conventions, Units, conversion
from farfield.datasets.registry import DATASETS, find_dataset, resolve_data


@pytest.mark.parametrize(
    ("unit", "quantity", "value"),
    [
        ("eV", "energy", 1.0),
        ("meV", "energy", 1e-3),
        ("kcal/mol", "energy", ase.units.kcal / ase.units.mol),
        ("kJ/mol", "energy", ase.units.kJ / ase.units.mol),
        ("Ha", "energy", ase.units.Hartree),
        ("Ha/bohr", "forces", ase.units.Hartree / ase.units.Bohr),
        ("kcal/mol/Å", "forces", ase.units.kcal / ase.units.mol),
        ("eV/Angstrom", "forces", 1.0),
        ("GPa", "stress", ase.units.GPa),
        ("kbar", "stress", 0.1 * ase.units.GPa),
        ("eV/Å^3", "stress", 1.0),
        ("Ry/bohr**3", "stress", ase.units.Rydberg / ase.units.Bohr**3),
        ("Debye", "dipole", ase.units.Debye),
        ("e*bohr", "dipole", ase.units.Bohr),
        ("Debye·Å", "quadrupole", ase.units.Debye),
        ("e·bohr²", "quadrupole", ase.units.Bohr**2),
        ("nm", "positions", 10.0),
    ],
)
def test_units_agree_with_those_of_ase(unit: str, quantity: str, value: float) -> None:
    # ase.units has CODATA 2014
    assert conversion(unit, quantity) == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize("quantity", OWN_UNITS)
def test_own_units_are_one(quantity: str) -> None:
    assert conversion(OWN_UNITS[quantity], quantity) == 1.0


@pytest.mark.parametrize(
    ("unit", "quantity"), [("eV/Å", "energy"), ("Å", "charges"), ("eV", "forces"), ("D", "stress")]
)
def test_units_of_another_quantity_are_refused(unit: str, quantity: str) -> None:
    with pytest.raises(ValueError, match=f"not one of {quantity}"):
        conversion(unit, quantity)


def test_unknown_units_are_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match="Did you mean hartree"):
        conversion("hartee", "energy")


def labelled() -> Atoms:
    rng = np.random.default_rng(0)
    atoms = molecule("H2O", vacuum=3.0, pbc=True)
    n = len(atoms)
    atoms.calc = SinglePointCalculator(
        atoms, energy=-3.5, forces=rng.normal(size=(n, 3)), stress=np.array([1.0, 2, 3, 4, 5, 6])
    )
    atoms.info["ref_dipole"] = rng.normal(size=3)
    atoms.info["ref_quadrupole"] = rng.normal(size=9)
    atoms.info["polarizability"] = rng.normal(size=9)
    atoms.arrays["mbi_charges"] = rng.normal(size=n)
    atoms.arrays["bec"] = rng.normal(size=(n, 9))
    return atoms


def test_default_columns_are_those_of_the_shared_files(tmp_path: Path) -> None:
    atoms = labelled()
    write(tmp_path / "data.extxyz", [atoms, atoms])
    dataset = load_dataset(tmp_path / "data.extxyz")
    labels = dataset[1].labels
    assert dataset.labels == set(OWN_UNITS) - {"positions", *INTERACTIONS}
    assert labels["energy"].tolist() == [-3.5]
    np.testing.assert_allclose(labels["forces"], atoms.get_forces(), atol=1e-8)
    # ASE's Voigt order is xx yy zz yz xz xy
    assert labels["stress"][0].tolist() == [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    np.testing.assert_allclose(labels["quadrupole"][0].flatten(), atoms.info["ref_quadrupole"], atol=1e-8)
    for n in range(3):
        for a in range(3):
            for b in range(3):
                # the file: displacement first; here: polarization first
                assert labels["born_charges"][n, b, a] == pytest.approx(atoms.arrays["bec"][n, 3 * a + b], abs=1e-8)


def test_index_order_and_stress_sign_can_be_stated() -> None:
    atoms = labelled()
    default = label_structures([atoms])[0].labels
    stated = Conventions(born_charges="polarization-first", stress="compressive")
    other = label_structures([atoms], conventions=stated)[0].labels
    assert torch.equal(default["born_charges"], other["born_charges"].transpose(1, 2))
    assert torch.equal(default["stress"], -other["stress"])


def test_columns_and_units_can_be_stated() -> None:
    atoms = labelled()
    atoms.info["E"] = 2.0
    atoms.arrays["gradient"] = np.ones((3, 3))
    columns = Columns(energy="E", forces=["none", "gradient"], dipole=None)  # type: ignore[arg-type]
    units = Units(energy="Ha", forces="Ha/bohr", positions="bohr")
    sample = label_structures([atoms], columns=columns, units=units, dtype=torch.float32)[0]
    assert sample.labels["energy"].dtype == torch.float64
    assert sample.labels["energy"].item() == pytest.approx(2 * ase.units.Hartree)
    assert sample.labels["forces"][0, 0].item() == pytest.approx(ase.units.Hartree / ase.units.Bohr)
    assert "dipole" not in sample.labels
    np.testing.assert_allclose(sample.batch.positions, atoms.positions * ase.units.Bohr, rtol=1e-6)
    np.testing.assert_allclose(sample.batch.cell[0], atoms.cell[:] * ase.units.Bohr, rtol=1e-6)


@pytest.mark.parametrize("epsilon", [1.83, np.array([[1.8, 0.1, 0.0], [0.1, 1.9, 0.2], [0.0, 0.2, 1.7]])])
def test_dielectric_tensors_of_bulk_become_polarizabilities(epsilon: float | np.ndarray) -> None:
    """α = V (ε − 1)/4π; only of bulk, and where no polarizability is given."""
    atoms = labelled()
    del atoms.info["polarizability"]
    atoms.info["epsilon_inf"] = epsilon if np.ndim(epsilon) == 0 else np.ravel(epsilon)
    atoms.set_cell([4.0, 5.0, 6.0])
    atoms.pbc = True
    found = label_structures([atoms], dtype=torch.float32)[0].labels["polarizability"]
    assert found.dtype == torch.float32
    expected = 120.0 / (4 * np.pi) * (epsilon * np.eye(3) - np.eye(3) if np.ndim(epsilon) == 0 else epsilon - np.eye(3))
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    bohr = label_structures([atoms], units=Units(positions="bohr"))[0].labels["polarizability"]
    np.testing.assert_allclose(bohr[0], expected * ase.units.Bohr**3, rtol=1e-6)
    assert "polarizability" not in label_structures([atoms], columns=Columns(epsilon_infinity=None))[0].labels  # type: ignore[arg-type]
    for wrong, message in (([1.0, 2.0], r"'epsilon_infinity' has shape \(2,\)"), (np.nan, "finite"), ("x", "numeric")):
        atoms.info["epsilon_inf"] = wrong
        with pytest.raises(ValueError, match=f"frame 0.*{message}"):
            label_structures([atoms])
    atoms.pbc = (True, True, False)
    assert "polarizability" not in label_structures([atoms])[0].labels
    atoms.pbc = True
    atoms.info["polarizability"] = np.arange(9.0)
    assert label_structures([atoms])[0].labels["polarizability"].flatten().tolist() == list(range(9))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("energy", np.nan, "frame 1.*'energy'.*finite"),
        ("ref_dipole", [1.0, 2.0], "frame 1.*'dipole'.*shape"),
        ("ref_dipole", "text", "frame 1.*'dipole'.*numeric"),
        ("charge", None, "frame 1.*'total'"),
    ],
)
def test_unsound_labels_are_refused_by_frame(place: str, value: object, message: str) -> None:
    good, bad = labelled(), labelled()
    good.info["total"] = bad.info["total"] = 0
    if place == "charge":
        del bad.info["total"]
    elif place == "energy":
        bad.calc.results["energy"] = value
    else:
        bad.info[place] = value
    with pytest.raises(ValueError, match=message):
        label_structures([good, bad], total_charge="total")


def test_collating_is_concatenating() -> None:
    dataset = label_structures(clusters(5)).with_neighbors(2.0)
    sample = collate(dataset.samples)
    assert sample.batch.n_systems == 5
    assert torch.equal(sample.labels["energy"], torch.cat([s.labels["energy"] for s in dataset]))
    assert torch.equal(sample.labels["forces"], torch.cat([s.labels["forces"] for s in dataset]))
    assert [s.batch.n_systems for s in dataset.batches(2)] == [2, 2, 1]


def test_labels_that_only_some_have_are_refused() -> None:
    dataset = label_structures([labelled(), *clusters(1)])
    assert dataset.labels == {"energy", "forces"}
    with pytest.raises(ValueError, match="dipole"):
        collate(dataset.samples)


def test_neighbours_are_found_once() -> None:
    dataset = label_structures(clusters(2)).with_neighbors(2.0)
    again = dataset.with_neighbors(2.0)
    assert again[0].batch.neighbors is dataset[0].batch.neighbors
    assert dataset.with_neighbors(3.0)[0].batch.neighbors is not dataset[0].batch.neighbors


def test_choices_of_frames() -> None:
    info = [{"d": d, "k": k} for d, k in zip([5, 3, 1, 4, 2, 6], "aababb", strict=True)]
    assert select_frames(info) == [0, 1, 2, 3, 4, 5]
    assert select_frames(info, where={"k": "a"}) == [0, 1, 3]
    assert select_frames(info, sort="d", first=2) == [2, 4]
    assert sorted(select_frames(info, sort="d", per="k", last=1)) == [0, 5]
    assert select_frames(info, sort="d", first=1, last=1) == [2, 5]
    with pytest.raises(ValueError, match="'other'"):
        select_frames(info, sort="other")
    with pytest.raises(ValueError, match="no frames"):
        select_frames(info, where={"k": "c"})


@given(st.integers(1, 8), st.integers(1, 8))
def test_first_and_last_never_overlap_where_they_add_up(n: int, first: int) -> None:
    info = [{"d": i} for i in range(n + first)]
    one = select_frames(info, sort="d", first=first)
    two = select_frames(info, sort="d", last=n)
    assert sorted(one + two) == list(range(n + first))


def test_registry_names_what_is_near_and_where_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARFIELD_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"(?s)cace-lr-fit.*CC BY-NC.*FARFIELD_DATA"):
        find_dataset("dipeptides/train")
    with pytest.raises(FileNotFoundError, match="Did you mean 'dipeptides/train'"):
        resolve_data("dipeptide/train")
    with pytest.raises(KeyError, match="Did you mean"):
        find_dataset("dipeptides/tran")
    path = tmp_path / DATASETS["dipeptides/train"].file
    path.parent.mkdir()
    path.touch()
    assert find_dataset("dipeptides/train") == path
    assert resolve_data(path) == path


def test_every_registered_set_is_readable(shared_data: Path) -> None:
    for name in DATASETS:
        assert find_dataset(name).is_file(), name


@pytest.mark.parametrize("name", ["dimers/lode", "carbon-chains", "superionic/2gcc"])
def test_registered_sets_have_energies_and_forces(shared_data: Path, name: str) -> None:
    dataset = load_dataset(name, dtype=torch.float32)
    assert {"energy", "forces"} <= dataset.labels
    if DATASETS[name].columns:
        assert set(DATASETS[name].columns) <= dataset.labels


def test_born_charges_of_the_shared_files_obey_the_rotational_sum_rule(shared_data: Path) -> None:
    # Rotating a molecule rotates its dipole: Σ_n Z*_n (ω × r_n) = ω × μ, which holds for one index order only.
    dataset = load_dataset("spice/bec", select={"first": 60})
    right = wrong = size = 0.0
    for sample in dataset:
        born, positions = sample.labels["born_charges"], sample.batch.positions
        dipole = sample.labels["dipole"][0]
        for axis in torch.eye(3, dtype=torch.float64):
            turned = torch.linalg.cross(axis.expand_as(positions), positions)
            expected = torch.linalg.cross(axis, dipole)
            right += float((torch.einsum("npd,nd->p", born, turned) - expected).square().sum())
            wrong += float((torch.einsum("ndp,nd->p", born, turned) - expected).square().sum())
            size += float(expected.square().sum())
    assert (right / size) ** 0.5 < 0.02  # the data's own README: within 1 %
    assert (wrong / size) ** 0.5 > 0.1


def test_a_file_is_a_data_set(tmp_path: Path) -> None:
    dataset = load_dataset(write_clusters(tmp_path), select={"where": {"label": "odd"}, "sort": "distance", "first": 2})
    assert isinstance(dataset, Dataset)
    assert [entry["distance"] for entry in dataset.info] == [1.0, 3.0]
    assert dataset.elements == [1, 8]
