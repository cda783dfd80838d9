"""What `evaluate` compares, in which units and conventions, and what it leaves alone."""

import json

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from labelled_structures import Oracle, alloys, water_dimers
from small_models import small_model

import farfield
from farfield.datasets.dataset import label_structures
from farfield.datasets.quantities import INTERACTIONS, Columns, Units
from farfield.evaluation.comparison import QUANTITIES
from farfield.evaluation.evaluate import evaluate
from farfield.evaluation.reading import read_labelled

UNITS = {
    "energy_per_atom": "meV",
    "forces": "meV/Å",
    "stress": "meV/Å³",
    "dipole": "e·Å",
    "quadrupole": "e·Å²",
    "charges": "e",
    "born_charges": "e",
}


@pytest.fixture(scope="module")
def water():
    return water_dimers(12)


def perfect(frames, **changes):
    return Oracle(label_structures(frames), **changes)


def centred(frames):
    """Moments about the geometric centre: what a model of the centre answers."""
    moved = []
    for atoms in frames:
        copy = atoms.copy()
        copy.calc = atoms.calc
        arms = atoms.positions - atoms.positions.mean(axis=0)
        charges = atoms.arrays["mbi_charges"]
        copy.info["ref_quadrupole"] = np.einsum("i,ia,ib->ab", charges, arms, arms).ravel()
        moved.append(copy)
    return moved


def test_perfect_predictions(water):
    result = evaluate(perfect(water), water)
    absent = {"stress", "polarizability", *INTERACTIONS}
    assert list(result.comparisons) == [key for key in QUANTITIES if key not in absent]
    assert result.notes == []
    assert result.n_systems == 12
    for comparison in result.comparisons.values():
        assert comparison.metrics.rmse == pytest.approx(0.0, abs=1e-9)
        assert comparison.metrics.r2 == pytest.approx(1.0)


def test_first_and_last_choose_what_is_compared(water):
    energies = [frame.get_potential_energy() / len(frame) * 1e3 for frame in water]
    for choice, expected in (({"last": 3}, energies[-3:]), ({"first": 2}, energies[:2])):
        compared = evaluate(perfect(water[-3:] if "last" in choice else water[:2]), water, **choice)
        assert compared.n_systems == len(expected)
        assert compared.comparisons["energy_per_atom"].reference.ravel() == pytest.approx(expected)


def test_units_of_the_report(water):
    # 1 meV/Å on every force component, 6 meV on every energy of 6 atoms, 2 me on every charge
    model = perfect(
        water,
        forces=lambda label: label + 1e-3,
        energy=lambda label: label + 6e-3,
        charges=lambda label: label + 2e-3,
    )
    metrics = evaluate(model, water).as_dict()["metrics"]
    assert metrics["forces"]["rmse"] == pytest.approx(1.0)
    assert metrics["energy_per_atom"]["mae"] == pytest.approx(1.0)
    assert metrics["energy_per_atom"]["rmse_centred"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["charges"]["mae"] == pytest.approx(2e-3)


def test_stress_in_mev_per_cubic_angstrom():
    frames = alloys(6)
    model = perfect(frames, stress=lambda label: label + 2e-3)
    result = evaluate(model, frames)
    assert set(result.comparisons) == {"energy_per_atom", "forces", "stress"}
    assert result.comparisons["stress"].metrics.mae == pytest.approx(2.0)
    assert result.comparisons["stress"].predicted.shape == (6, 9)


def test_json_is_what_was_promised(water, tmp_path):
    write(tmp_path / "water.extxyz", water)
    result = evaluate(perfect(read_labelled_structures(tmp_path / "water.extxyz")), str(tmp_path / "water.extxyz"))
    result.write_json(tmp_path / "deep" / "metrics.json")
    found = json.loads((tmp_path / "deep" / "metrics.json").read_text(encoding="utf-8"))
    assert list(found) == ["model", "data", "n_systems", "metrics"]
    assert found["data"] == str(tmp_path / "water.extxyz")
    assert found["n_systems"] == 12
    for key, entry in found["metrics"].items():
        assert entry["unit"] == UNITS[key]
        assert {"unit", "mae", "rmse", "r2", "pearson_r2"} <= set(entry)
    assert "rmse_centred" in found["metrics"]["energy_per_atom"]
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "metrics.json"]  # no temporary file stays


def read_labelled_structures(path):
    from farfield.atoms.structures import read_structures

    return read_structures(path)


def test_only_labels_that_are_there(water):
    bare = []
    for atoms in water:
        copy = Atoms(atoms.numbers, atoms.positions)
        copy.calc = SinglePointCalculator(copy, forces=atoms.calc.results["forces"])
        bare.append(copy)
    assert list(evaluate(perfect(water), bare).comparisons) == ["forces"]


def test_labels_of_some_structures(water):
    partly = [atoms.copy() for atoms in water]
    for number, (copy, atoms) in enumerate(zip(partly, water, strict=True)):
        copy.calc = atoms.calc
        if number % 3:
            del copy.arrays["bec"]
    result = evaluate(perfect(water), partly)
    assert result.comparisons["born_charges"].metrics.count == 4 * 6 * 9
    assert result.comparisons["forces"].metrics.count == 12 * 6 * 3


def test_batching_changes_nothing(water):
    model = perfect(water, forces=lambda label: 1.1 * label)
    one = evaluate(model, water, atoms_per_batch=1)
    assert max(model.calls) == 6
    model.calls.clear()
    other = evaluate(model, water, atoms_per_batch=20)
    assert max(model.calls) == 18
    for key in one.comparisons:
        np.testing.assert_array_equal(one.comparisons[key].predicted, other.comparisons[key].predicted)
        np.testing.assert_array_equal(one.comparisons[key].system, other.comparisons[key].system)


def test_nothing_to_compare(water):
    with pytest.raises(ValueError, match="nothing to compare"):
        evaluate(perfect(water), [Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])])
    with pytest.raises(ValueError, match="quantities"):
        evaluate(perfect(water), water, quantities=["force"])


def test_index_order_of_born_charges(water):
    exchanged = [atoms.copy() for atoms in water]
    for copy in exchanged:
        copy.arrays["bec"] = copy.arrays["bec"].reshape(-1, 3, 3).swapaxes(1, 2).reshape(-1, 9)
    model = perfect(water)
    with pytest.warns(UserWarning, match="other index order"):
        wrong = evaluate(model, exchanged, quantities=["born_charges"])
    assert wrong.comparisons["born_charges"].metrics.rmse > 0.01
    right = evaluate(model, exchanged, quantities=["born_charges"], born_order="polarization-first")
    assert right.comparisons["born_charges"].metrics.rmse == pytest.approx(0.0, abs=1e-12)


def test_columns_and_units(water):
    renamed = []
    for atoms in water:
        copy = Atoms(atoms.numbers, atoms.positions)
        copy.info["E"] = atoms.calc.results["energy"] * 23.060547830619
        copy.arrays["F"] = atoms.calc.results["forces"] / 51.422067476
        renamed.append(copy)
    columns = Columns(energy="E", forces="F")
    units = Units(energy="kcal/mol", forces="Ha/bohr")
    result = evaluate(perfect(water), renamed, columns=columns, units=units)
    assert result.comparisons["energy_per_atom"].metrics.rmse == pytest.approx(0.0, abs=1e-5)
    assert result.comparisons["forces"].metrics.rmse == pytest.approx(0.0, abs=1e-3)
    with pytest.warns(UserWarning, match="Ha/bohr"):
        evaluate(perfect(water), renamed, columns=columns, units=Units(energy="kcal/mol"))


@pytest.mark.parametrize("origin", ["mass", "zero"])
def test_origin_of_quadrupole_labels(water, origin):
    """The model answers about the geometric centre; labels about other points are carried there."""
    model = perfect(centred(water))
    labelled = []
    for atoms in water:
        point = atoms.get_center_of_mass() if origin == "mass" else np.zeros(3)
        copy = atoms.copy()
        charges, arms = atoms.arrays["mbi_charges"], atoms.positions - point
        copy.info["ref_quadrupole"] = (np.einsum("i,ia,ib->ab", charges, arms, arms) + 3 * np.eye(3)).ravel()
        labelled.append(copy)
    right = evaluate(model, labelled, quantities=["quadrupole"], quadrupole_origin=origin)
    assert right.comparisons["quadrupole"].metrics.rmse == pytest.approx(0.0, abs=1e-10)
    free = evaluate(model, labelled, quantities=["quadrupole"], quadrupole_origin="unknown")
    assert free.comparisons["quadrupole"].metrics.rmse == pytest.approx(0.0, abs=1e-10)
    with pytest.warns(UserWarning, match="quadrupole-origin"):
        wrong = evaluate(model, labelled, quantities=["quadrupole"])
    assert wrong.comparisons["quadrupole"].metrics.rmse > 0.01
    assert wrong.comparisons["quadrupole"].predicted.shape == (12, 6)


def test_sign_gauge_of_the_model(water):
    """The stored sign is used as it is; one that is wrong is noticed, and not repaired."""
    with pytest.warns(UserWarning, match="gauge"):
        result = evaluate(perfect(water, charges=np.negative), water, quantities=["charges"])
    assert result.comparisons["charges"].metrics.r2 < 0
    assert result.comparisons["charges"].metrics.pearson_r2 == pytest.approx(1.0)


def test_sign_gauge_reaches_every_electric_quantity(water):
    frames = water[:4]
    one, other = small_model(), small_model()
    other.card = other.card.replace(gauge_sign=-one.card.gauge_sign)
    keys = ["dipole", "quadrupole", "charges", "born_charges"]
    with pytest.warns(UserWarning, match="labels"):
        first, second = (evaluate(model, frames, quantities=keys) for model in (one, other))
    for key in keys:
        np.testing.assert_allclose(first.comparisons[key].predicted, -second.comparisons[key].predicted)


def test_short_range_models_have_no_charges(water):
    with pytest.warns(UserWarning, match="has no charges"):
        result = evaluate(small_model(long_range=False), water[:3])
    assert set(result.comparisons) == {"energy_per_atom", "forces"}


def test_reference_energies_are_not_refitted(water):
    model = perfect(water, energy=lambda label: label + 100.0)
    result = evaluate(model, water, quantities=["energy_per_atom"])
    assert result.comparisons["energy_per_atom"].metrics.rmse == pytest.approx(1e5 / 6)


def test_errors_by_element_and_structure(water):
    model = perfect(water, charges=lambda label: label + np.tile([0.3, 0.0, 0.0], len(label) // 3))
    comparison = evaluate(model, water, quantities=["charges"]).comparisons["charges"]
    assert comparison.by_element[8].rmse == pytest.approx(0.3)
    assert comparison.by_element[1].rmse == pytest.approx(0.0, abs=1e-12)
    assert comparison.rmse_of_systems() == pytest.approx(dict.fromkeys(range(12), np.sqrt(0.09 / 3)))


def test_total_charge_is_read_where_all_have_it(water):
    assert read_labelled(water)[0].batch.total_charge is not None
    assert read_labelled(water, total_charge=None)[0].batch.total_charge is None
    without = [atoms.copy() for atoms in water]
    del without[3].info["total_charge"]
    assert read_labelled(without)[0].batch.total_charge is None


@pytest.fixture(scope="module")
def pairs():
    """Pairs of water molecules, their interactions as `small_model` has them, and the model."""
    model, frames = small_model(dipoles=True), []
    for distance, sign in ((3.0, 1.0), (5.0, 1.0), (8.0, -1.0)):
        parts = [molecule("H2O"), molecule("H2O")]
        parts[1].positions *= sign
        parts[1].positions += [0.3, 0.1, distance]
        pair = parts[0] + parts[1]
        for atoms in (pair, *parts):
            atoms.calc = farfield.Calculator(model)
        pair.info["interaction_energy"] = pair.get_potential_energy() - sum(one.get_potential_energy() for one in parts)
        pair.arrays["interaction_forces"] = pair.get_forces() - np.concatenate([one.get_forces() for one in parts])
        pair.arrays["fragment"] = np.repeat([0, 1], 3)
        pair.calc = None
        frames.append(pair)
    return model, frames


def test_interactions_are_the_whole_less_its_fragments(pairs):
    model, frames = pairs
    result = evaluate(model, frames)
    assert list(result.comparisons) == ["interaction_energy", "interaction_forces"]
    energies, forces = result.comparisons.values()
    assert np.abs(energies.reference).min() > 1e-3
    assert energies.predicted == pytest.approx(energies.reference, abs=1e-6)
    assert forces.predicted == pytest.approx(forces.reference, abs=1e-6)


def test_interactions_are_compared_in_batches_of_any_size_beside_other_frames(pairs):
    model, frames = pairs
    whole = frames[0].copy()
    for key in ("interaction_energy", "fragment", "interaction_forces"):
        whole.info.pop(key, None), whole.arrays.pop(key, None)
    whole.calc = SinglePointCalculator(whole, energy=0.0)
    mixed = [frames[0], whole, *frames[1:]]
    one, all_ = (evaluate(model, mixed, atoms_per_batch=size).comparisons for size in (1, 100))
    assert list(one) == list(all_) == ["energy_per_atom", "interaction_energy", "interaction_forces"]
    assert one["interaction_forces"].system.tolist() == np.repeat([0, 2, 3], 6).tolist()
    for key, comparison in one.items():
        assert comparison.predicted == pytest.approx(all_[key].predicted, abs=1e-6)


def test_interactions_without_fragments_are_refused_unless_not_asked_for(pairs):
    model, frames = pairs
    whole = frames[0].copy()
    del whole.arrays["fragment"]
    whole.calc = SinglePointCalculator(whole, energy=0.0)
    with pytest.raises(ValueError, match="no array 'fragment'"):
        evaluate(model, [whole])
    assert list(evaluate(model, [whole], quantities=["energy_per_atom"]).comparisons) == ["energy_per_atom"]
