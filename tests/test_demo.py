"""The demo: the laws that its shipped data obey, and that it ends with a report."""

from __future__ import annotations

import json

import numpy as np
import pytest
from ase import Atoms, units

from demo_data import contents, hartree_fock
from farfield.atoms.structures import read_structures
from farfield.datasets.registry import find_dataset
from farfield.demo import run_demo
from farfield.demo.curves import pairs_of, separate, smallest_contact


@pytest.fixture(scope="module")
def shipped() -> dict[str, list[Atoms]]:
    return {part: read_structures(find_dataset(f"demo/{part}")) for part in ("train", "val", "test")}


# --- the data --------------------------------------------------------------------------------------------------------


def test_data_are_small() -> None:
    assert sum(find_dataset(f"demo/{part}").stat().st_size for part in ("train", "val", "test")) < 2e6


@pytest.mark.parametrize("part", ["train", "val"])
def test_labels_kept_back_are_not_even_in_the_training_files(shipped, part: str) -> None:
    for atoms in shipped[part]:
        assert not {"ref_dipole", "dipole"} & set(atoms.info)
        assert not {"bec", "esp_charges"} & set(atoms.arrays)
        assert set(atoms.calc.results) == {"energy", "forces"}


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_no_net_force_and_no_torque(shipped, part: str) -> None:
    """An open system is free to move and turn: forces and torques vanish (density fitting and rounding: 1e-5)."""
    for atoms in shipped[part]:
        forces = atoms.get_forces()
        assert abs(forces.sum(0)).max() < 1e-5
        assert abs(np.cross(atoms.positions, forces).sum(0)).max() < 2e-4


def test_born_charges_sum_to_the_total_charge(shipped) -> None:
    assert sum("bec" in atoms.arrays for atoms in shipped["test"]) > 40
    for atoms in shipped["test"]:
        if "bec" in atoms.arrays:
            born = atoms.arrays["bec"].reshape(-1, 3, 3)
            np.testing.assert_allclose(born.sum(0), atoms.info["total_charge"] * np.eye(3), atol=1e-4)
        assert atoms.arrays["esp_charges"].sum() == pytest.approx(atoms.info["total_charge"], abs=1e-5)


def test_born_charges_turn_the_dipole(shipped) -> None:
    """Rotating the molecule rotates its dipole: Σ_n (ω×r_n)·Z*_n = ω×µ, which tells the two indices apart."""
    for atoms in (atoms for atoms in shipped["test"] if "bec" in atoms.arrays):
        born = atoms.arrays["bec"].reshape(-1, 3, 3)  # displacement first
        for axis in np.eye(3):
            change = np.einsum("na,nab->b", np.cross(axis, atoms.positions), born)
            np.testing.assert_allclose(change, np.cross(axis, atoms.info["ref_dipole"]), atol=2e-3)


def test_curves_cover_short_and_long_distances(shipped) -> None:
    curves: dict[str, list[Atoms]] = {}
    for atoms in shipped["test"]:
        if "curve" in atoms.info:
            curves.setdefault(atoms.info["curve"], []).append(atoms)
    assert {atoms.info["kind"] for group in curves.values() for atoms in group} == {"CC", "CP", "PP"}
    for group in curves.values():
        distances = [atoms.info["distance"] for atoms in group]
        assert min(distances) <= 5.5
        assert max(distances) == 15.0
        rigid = [np.concatenate([np.linalg.norm(p.positions - p.positions[0], axis=1) for p in separate(atoms)])
                 for atoms in group]  # fmt: skip
        np.testing.assert_allclose(rigid, np.broadcast_to(rigid[0], np.shape(rigid)), atol=1e-6)


def test_training_stays_within_its_distances_and_pairs(shipped) -> None:
    trained = pairs_of(shipped["train"]) | pairs_of(shipped["val"])
    assert not trained & {frozenset(pair) for pair in contents.UNSEEN}
    reached = [atoms.info["distance"] for atoms in shipped["train"] if "distance" in atoms.info]
    assert 3.0 <= min(reached) < 4.0
    assert max(reached) <= contents.TRAINED_RANGE
    beyond = [atoms for atoms in shipped["test"] if atoms.info.get("distance", 0) > contents.TRAINED_RANGE]
    assert len(beyond) > 15


def test_far_ions_feel_the_coulomb_force_of_whole_charges(shipped) -> None:
    """Force between two ions more than 9 Å apart: that of charges at the atoms, which sum to whole numbers."""
    k_e = 14.399645478
    seen = 0
    for atoms in shipped["test"]:
        if atoms.info["kind"] != "CC" or atoms.info["distance"] < 9:
            continue
        charges, second = atoms.arrays["esp_charges"], atoms.arrays["molecule"] == 1
        for name, part in zip(atoms.info["molecules"].split(), (~second, second), strict=True):
            assert charges[part].sum() == pytest.approx(contents.MOLECULES[name], abs=0.02)
        bonds = atoms.positions[second][:, None] - atoms.positions[~second][None]
        pairs = charges[second][:, None] * charges[~second][None] / np.linalg.norm(bonds, axis=-1) ** 3
        expected = k_e * np.einsum("ij,ijx->x", pairs, bonds)
        found = atoms.get_forces()[second].sum(0)
        # what is left is polarization, which falls as d⁻⁵
        assert np.linalg.norm(found - expected) < 0.05 * np.linalg.norm(expected)
        seen += 1
    assert seen >= 8


def test_forces_are_the_gradient_of_the_energy_along_the_curves(shipped) -> None:
    """Moving a rigid molecule away: the energy differences equal the integral of the force (here by a spline)."""
    from scipy.interpolate import CubicHermiteSpline

    curves: dict[str, list[Atoms]] = {}
    for atoms in shipped["test"]:
        if "curve" in atoms.info:
            curves.setdefault(atoms.info["curve"], []).append(atoms)
    for group in curves.values():
        # near contact the points are too far apart for a cubic
        group = sorted((a for a in group if a.info["distance"] >= 5), key=lambda atoms: atoms.info["distance"])
        distance = np.array([atoms.info["distance"] for atoms in group])
        energy = np.array([atoms.get_potential_energy() for atoms in group])
        slope = np.array([-atoms.get_forces()[atoms.arrays["molecule"] == 1].sum(0)[2] for atoms in group])
        # Energies and slopes overdetermine the curve: leave out a point, predict it from its neighbours.
        for k in range(1, len(group) - 1):
            around = [k - 1, k + 1]
            guess = CubicHermiteSpline(distance[around], energy[around], slope[around])(distance[k])
            width = distance[k + 1] - distance[k - 1]
            curvature = abs(np.diff(slope[around])[0]) * width
            assert guess == pytest.approx(energy[k], abs=0.05 * curvature + 2e-4)


def test_molecules_do_not_clash_and_are_whole(shipped) -> None:
    for part in shipped.values():
        for atoms in part:
            if len(atoms.info["molecules"].split()) == 2:
                assert smallest_contact(atoms) > 1.4
            assert not atoms.pbc.any()


def test_labels_come_out_again(shipped) -> None:
    """The script's Hartree–Fock gives the shipped energy, and forces and Born charges as finite differences."""
    pytest.importorskip("pyscf")
    atoms = min((atoms for atoms in shipped["test"] if "bec" in atoms.arrays), key=len)
    fresh = Atoms(atoms.numbers, atoms.positions, info=dict(atoms.info))
    summary = json.loads((find_dataset("demo/test").parent / "summary.json").read_text())
    separate_energy = sum(summary["separate_molecules_hartree"][name] for name in atoms.info["molecules"].split())
    mf = hartree_fock.hartree_fock(fresh)
    assert (mf.e_tot - separate_energy) * units.Hartree == pytest.approx(atoms.get_potential_energy(), abs=1e-5)

    step = 2e-3
    energies, dipoles = [], []
    for sign in (1, -1):
        moved = fresh.copy()
        moved.positions[0, 1] += sign * step
        mf = hartree_fock.hartree_fock(moved)
        energies.append(mf.e_tot * units.Hartree)
        dipoles.append(hartree_fock.dipole(mf) * units.Bohr)
    assert (energies[1] - energies[0]) / (2 * step) == pytest.approx(atoms.get_forces()[0, 1], abs=2e-4)
    born = atoms.arrays["bec"].reshape(-1, 3, 3)
    np.testing.assert_allclose((dipoles[0] - dipoles[1]) / (2 * step), born[0, 1], atol=2e-4)


# --- the demo --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The demo with two epochs on a tiny backbone."""
    output = tmp_path_factory.mktemp("demo") / "demo-report"
    overrides = [
        "epochs=1",
        "loss.stages=[{energy: 1, forces: 100}]",
        "model.backbone={kind: cace, cutoff: 4.0, n_layers: 0, n_bessel: 3, n_radial: 3, n_embedding: 2, max_l: 1,"
        " max_nu: 2, n_features: 8, n_vectors: 2, n_hidden: [8]}",
    ]
    return run_demo(output, overrides=overrides, quiet=True, overview=output.parent / "overview.png")


def test_demo_writes_its_report(tiny) -> None:
    folder = tiny.page.parent
    text = tiny.page.read_text()
    assert tiny.page.name == "index.html"
    assert "<table" in text
    assert 'src="http' not in text  # nothing is loaded from elsewhere
    for name in ("curves.png", "forces.png", "kept_back.png", "demo.png", "short-range.ff", "long-range.ff"):
        assert (folder / name).stat().st_size > 1000
    assert (folder.parent / "overview.png").read_bytes() == (folder / "demo.png").read_bytes()


def test_short_range_model_sees_nothing_beyond_its_cutoff(tiny) -> None:
    """Whatever was trained: molecules out of each other's sight have no short-range interaction at all."""
    for curve in tiny.curves:
        assert curve.beyond.sum() >= 3
        assert abs(curve.models["short-range"][curve.beyond]).max() < 1e-4


def test_long_range_model_reaches_beyond_its_cutoff(tiny) -> None:
    assert any(abs(curve.models["long-range"][curve.beyond]).max() > 1e-3 for curve in tiny.curves)


def test_models_of_the_demo_can_be_used(tiny) -> None:
    import farfield

    model = farfield.load(tiny.page.parent / "long-range.ff")
    assert model.is_long_range
    assert not model.uses_total_charge
    born = model.compute(Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]), ["born_charges"])["born_charges"]
    assert born.shape == (3, 3, 3)


def test_twins_differ_in_the_long_range_alone(tiny) -> None:
    from farfield.demo.run import TWINS, demo_config

    first, second = (demo_config(name, tiny.page.parent).model_dump() for name in TWINS)
    assert first["model"].pop("long_range") is None
    assert second["model"].pop("long_range") is not None
    assert first.pop("name") != second.pop("name")
    assert first == second
