"""Inspection: silent on sound data, and every planted defect is named."""

import json

import numpy as np
import pytest
from ase import Atoms
from labelled_structures import alloys, changed, water_dimers

from farfield.datasets.inspect import inspect


@pytest.fixture(scope="module")
def water():
    return water_dimers(80)


@pytest.fixture(scope="module")
def metal():
    return alloys(24)


def copies(frames):
    return changed(frames)


def topics(frames, **options):
    return {finding.topic for finding in inspect(frames, **options).warnings}


def messages(frames, **options):
    return " ".join(finding.message for finding in inspect(frames, **options).warnings)


def test_sound_molecules(water):
    result = inspect(water)
    assert result.warnings == []
    assert result.facts["elements"] == "H 320, O 160"
    assert result.facts["total charge"] == "+0 e in 80"


def test_sound_metal(metal):
    assert inspect(metal).warnings == []


@pytest.mark.parametrize(
    ("factors", "topic", "text"),
    [
        ({"energy": 23.06, "forces": 23.06}, "units", "kcal/mol/Å"),
        ({"energy": 1 / 27.2114, "forces": 1 / 51.422}, "units", "Ha/bohr"),
        ({"forces": -1}, "units", "wrong sign"),
    ],
)
def test_units_of_molecules(water, factors, topic, text):
    """Bonds to hydrogen have a known stiffness, so even labels that agree with each other are found out."""
    result = inspect(changed(water, **factors), fit=False)
    assert [finding.topic for finding in result.warnings] == [topic]
    assert text in result.warnings[0].message


@pytest.mark.parametrize(
    ("factors", "topic", "text"),
    [
        ({"stress": -1}, "stress", "flipped"),
        ({"stress": 160.2177}, "stress", "GPa"),
        ({"forces": -1}, "units", "wrong sign"),
        ({"energy": 23.06}, "units", "energies are in kcal/mol"),
        ({"forces": 23.06, "stress": 23.06}, "units", "forces in kcal/mol/Å"),
    ],
)
def test_units_and_signs_of_a_crystal(metal, factors, topic, text):
    """Forces alone say how energy and stress must change; what disagrees with them is named."""
    warnings = inspect(changed(metal, **factors)).warnings
    assert [finding.topic for finding in warnings] == [topic]
    assert text in warnings[0].message


def test_constants_and_a_pressure_are_no_defects(metal):
    """Forces say nothing of reference energies and of a pressure: neither is held against the labels."""
    pressure, shifted = 0.02, changed(metal)
    for atoms in shifted:
        atoms.calc.results["energy"] += -500.0 + pressure * atoms.get_volume()
        atoms.calc.results["stress"] = atoms.calc.results["stress"] + pressure * np.array([1, 1, 1, 0, 0, 0])
    assert inspect(shifted).warnings == []
    assert "energies are in kcal/mol" in messages(changed(shifted, energy=23.06))


def test_compressive_stress_can_be_stated(metal):
    from farfield.datasets.quantities import Conventions

    flipped = changed(metal, stress=-1)
    assert inspect(flipped, conventions=Conventions(stress="compressive")).warnings == []


def test_positions_in_bohr(water):
    frames = copies(water)
    for atoms in frames:
        atoms.positions /= 0.529177
    assert "bohr" in messages(frames, fit=False)


def test_duplicates_also_moved_turned_and_renumbered(water):
    frames = copies(water)[:20]
    copy = copies([water[3]])[0]
    order = [3, 5, 4, 0, 2, 1]
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = Atoms(copy.numbers[order], copy.positions[order] @ rotation + [1.0, 2.0, -3.0])
    result = inspect([*frames, turned], fit=False)
    assert [finding.topic for finding in result.warnings] == ["duplicates"]
    assert result.warnings[0].frames == (3, 20)


def test_duplicates_in_a_crystal_and_contradicting_energies(metal):
    copy = changed([metal[5]], energy=1.2)[0]
    copy.positions += copy.cell[0] - 0.3 * copy.cell[1]  # images and a shift
    result = inspect([*metal, copy], fit=False)
    found = [finding for finding in result.warnings if finding.topic == "duplicates"]
    assert found[0].frames == (5, 24)
    assert "differ in energy" in found[1].message


def test_a_small_move_makes_no_duplicate(metal):
    copy = copies([metal[5]])[0]
    copy.positions[3] += 0.01
    assert inspect([*metal, copy], fit=False).warnings == []


def test_force_outlier(water):
    frames = copies(water)
    frames[7].calc.results["forces"][2] += [60.0, 0.0, -20.0]
    frames[7].calc.results["forces"][1] -= [60.0, 0.0, -20.0]
    found = [finding for finding in inspect(frames, fit=False).warnings if finding.topic == "forces"]
    assert found[0].frames == (7,)


def test_net_force_and_torque(water):
    frames = copies(water)
    frames[4].calc.results["forces"] += [0.0, 0.8, 0.0]
    found = [finding for finding in inspect(frames, fit=False).warnings if finding.topic == "net force"]
    assert found[0].frames == (4,)
    turned = copies(water)
    for atoms in turned:
        atoms.positions = atoms.positions[:, [1, 2, 0]]  # positions in another frame than forces
    assert "turn the whole molecule" in messages(turned, fit=False)


def test_energy_outlier(metal):
    frames = changed(metal)
    frames[9].calc.results["energy"] += 60.0
    found = [finding for finding in inspect(frames, fit=False).warnings if finding.topic == "energies"]
    assert found[0].frames == (9,)


def test_charges_dipoles_and_born_charges(water):
    frames = copies(water)
    for atoms in frames:
        atoms.info["ref_dipole"] = atoms.info["ref_dipole"] * 4.803
    assert "Debye" in messages(frames, fit=False)

    frames = copies(water)
    frames[2].arrays["mbi_charges"] += 0.1
    found = [finding for finding in inspect(frames, fit=False).warnings if finding.topic == "charge"]
    assert found[0].frames == (2,)

    frames = copies(water)
    for atoms in frames:
        atoms.arrays["bec"] = atoms.arrays["bec"].reshape(-1, 3, 3).swapaxes(1, 2).reshape(-1, 9)
    assert "other index order" in messages(frames, fit=False)


def test_total_charges_and_isolated_atoms(water):
    frames = copies(water)
    for atoms in frames[:5]:
        atoms.info["total_charge"] = 1
        del atoms.arrays["mbi_charges"], atoms.arrays["bec"]
    frames.append(Atoms("O", [[0, 0, 0]], info={"total_charge": 0}))
    frames.append(Atoms("OHH", [[0, 0, 0], [0.97, 0, 0], [0, 9.0, 0]], info={"total_charge": 0}))
    notes = {(finding.topic, finding.frames) for finding in inspect(frames, fit=False).findings}
    assert ("isolated", (80,)) in notes
    assert ("isolated", (81,)) in notes
    assert "charge" in {topic for topic, _ in notes}


def test_unsound_frames_are_told_and_left_out(water):
    frames = copies(water)[:30]
    frames[11].positions[2, 1] = np.nan
    found = inspect(frames, fit=False).warnings
    assert [finding.frames for finding in found] == [(11,)]
    with pytest.raises(ValueError, match="cannot be used"):
        inspect([frames[11]])


def test_trajectory_is_noticed():
    generator = np.random.default_rng(0)
    atoms = Atoms("H8", generator.uniform(0, 6, (8, 3)))
    frames = []
    for _ in range(40):
        atoms.positions += generator.normal(0, 0.05, (8, 3))
        frames.append(atoms.copy())
    assert "order" in {finding.topic for finding in inspect(frames).findings}
    generator.shuffle(frames)
    assert "order" not in {finding.topic for finding in inspect(frames).findings}


def test_fragments_out_of_reach():
    """Ions 7 to 12 Å apart: only long range can give their forces."""
    from ase.calculators.singlepoint import SinglePointCalculator

    def pair(distance, charge):
        atoms = Atoms("NaCl", [[0, 0, 0], [distance, 0, 0]])
        force = 14.4 * charge / distance**2
        forces = np.array([[force, 0, 0], [-force, 0, 0]])
        atoms.calc = SinglePointCalculator(atoms, energy=-14.4 * charge / distance, forces=forces)
        return atoms

    ions, neutral = ([pair(d, charge) for d in np.linspace(7, 12, 12)] for charge in (1.0, 0.0))
    assert "need long range" in " ".join(finding.message for finding in inspect(ions, fit=False).findings)
    assert "no sign of long range" in " ".join(finding.message for finding in inspect(neutral, fit=False).findings)


def test_result_is_json(metal):
    found = json.loads(json.dumps(inspect(metal).as_dict()))
    assert len(found["short_range_fit"]["force_rmse"]) == len(found["short_range_fit"]["cutoffs"])
    assert found["short_range_fit"]["force_rmse"][2] < 0.1 * found["short_range_fit"]["force_rms"]
