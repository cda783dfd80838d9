"""The ASE calculator: ASE's own derivatives agree, MD conserves energy, the skin changes nothing."""

import copy
import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError
from ase.calculators.fd import calculate_numerical_forces, calculate_numerical_stress
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.io.trajectory import Trajectory
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from small_models import small_model

from farfield.engines.ase import Calculator, FieldWork
from farfield.ensemble import Ensemble


@pytest.fixture
def salt():
    """Oblique and left-handed."""
    atoms = bulk("NaCl", "rocksalt", 5.7, cubic=True)
    atoms.set_cell(atoms.cell[:] @ np.array([[1.0, 0.1, 0.0], [0.0, 1.02, -0.05], [0.03, 0.0, 1.0]]), scale_atoms=True)
    atoms.rattle(0.3, seed=3)  # some pairs come well within the cutoff of the small models
    atoms.set_cell(atoms.cell[[1, 0, 2]])
    return atoms


@pytest.fixture
def methanol():
    atoms = molecule("CH3OH")
    atoms.rattle(0.05, seed=1)
    return atoms


def test_forces_and_stress_are_derivatives_of_the_energy(salt, methanol, close):
    for atoms in (salt, methanol):
        atoms.calc = Calculator(small_model(layers=1, cutoff=3.3))
        scale = np.abs(atoms.get_forces()).max()
        close(atoms.get_forces() / scale, calculate_numerical_forces(atoms, eps=2e-6) / scale, atol=1e-6)
    close(salt.get_stress(), calculate_numerical_stress(salt, eps=1e-5), atol=1e-8)
    assert salt.get_stress(voigt=False).shape == (3, 3)


def test_names_and_shapes(salt, close):
    model = small_model(card={"gauge_sign": -1, "epsilon_infinity": 2.25})
    salt.calc = Calculator(model)
    born = salt.calc.get_property("born_effective_charges", salt)
    assert born.shape == (8, 3, 3)
    direct = model.compute(salt, ["charges", "dipole", "polarization", "born_charges", "energy"])
    close(born, direct["born_charges"])
    close(salt.get_charges(), direct["charges"])
    close(salt.get_dipole_moment(), direct["dipole"][0])
    close(salt.calc.get_property("polarization", salt), direct["polarization"][0])
    assert salt.get_potential_energy() == direct["energy"][0]
    assert salt.get_potential_energy(force_consistent=True) == salt.get_potential_energy()
    assert isinstance(salt.get_potential_energy(), float)
    assert salt.calc.screening == "epsilon_infinity=2.25"


def test_latent_charges_are_told_once_and_only_who_asks(salt):
    salt.calc = Calculator(small_model())
    salt.get_forces()
    with pytest.warns(UserWarning, match="latent"):
        salt.calc.get_property("born_effective_charges", salt)
    salt.rattle(0.01)
    salt.calc.get_property("born_effective_charges", salt)
    assert salt.calc.screening == "latent"
    salt.calc = Calculator(small_model(), epsilon_infinity=2.0)
    salt.calc.get_property("born_effective_charges", salt)


def test_what_was_computed_is_kept_until_atoms_move(methanol, monkeypatch):
    calc = methanol.calc = Calculator(small_model())
    calls = []
    real = calc.models[0].compute
    monkeypatch.setattr(calc.models[0], "compute", lambda *a, **k: calls.append(a[1]) or real(*a, **k))
    methanol.get_forces()
    methanol.get_potential_energy()
    methanol.get_dipole_moment()
    assert len(calls) == 1
    calc.get_property("born_effective_charges", methanol)
    calc.get_property("polarization", methanol)
    assert len(calls) == 3
    calc.get_property("born_effective_charges", methanol)
    assert len(calls) == 3
    methanol.rattle(0.01)
    methanol.get_potential_energy()
    assert len(calls) == 4
    assert "born_effective_charges" not in calc.results


def test_stress_is_computed_at_every_step_once_asked_for(salt):
    salt.calc = Calculator(small_model())
    salt.get_forces()
    assert "stress" not in salt.calc.results
    salt.get_stress()
    salt.rattle(0.01)
    salt.get_forces()
    assert "stress" in salt.calc.results


def test_stress_of_a_molecule_is_refused(methanol):
    methanol.calc = Calculator(small_model())
    with pytest.raises(PropertyNotImplementedError, match="periodic along all three axes"):
        methanol.get_stress()


def test_skin_changes_nothing_to_the_last_bit(salt):
    with_skin, without = (Calculator(small_model(layers=1, cutoff=3.3), skin=skin) for skin in (1.5, 0.0))
    for seed in range(6):
        salt.rattle(0.05, seed=seed)
        results = []
        for calc in (with_skin, without):
            salt.calc = calc
            results.append((salt.get_potential_energy(), salt.get_forces()))
        assert results[0][0] == results[1][0]
        assert np.array_equal(results[0][1], results[1][1])
    assert with_skin.neighbors.builds == 1
    assert without.neighbors.builds == 6


def test_nve_conserves_energy(salt):
    # Velocity Verlet: the fluctuation of the energy falls with the square of the step.
    fluctuations = []
    for step in (1.0, 0.5):
        atoms = salt.copy()
        atoms.calc = Calculator(small_model(card={"epsilon_infinity": 1.0}))
        rng = np.random.default_rng(1)
        atoms.set_velocities(rng.normal(size=(8, 3)) * np.sqrt(units.kB * 300 / atoms.get_masses())[:, None])
        energies = []
        dynamics = VelocityVerlet(atoms, step * units.fs)
        dynamics.attach(lambda atoms=atoms, energies=energies: energies.append(atoms.get_total_energy()))
        dynamics.run(round(40 / step))
        kinetic = atoms.get_kinetic_energy()
        fluctuations.append(np.ptp(energies))
    assert 0 < fluctuations[1] < 0.35 * fluctuations[0]
    assert fluctuations[1] < 0.05 * kinetic


def test_dynamics_in_a_field_conserve_the_energy_less_its_work(salt):
    """Along a wire and open directions alike: the part that is in the energy, and the part that is not."""
    salt.pbc = (True, True, False)
    salt.cell[2] *= 3.0
    errors, works = [], []
    for step in (1.0, 0.5):
        atoms = salt.copy()
        model = small_model(charge_scale=0.5, card={"epsilon_infinity": 2.0})
        atoms.calc = Calculator(model, external_field=[0.05, -0.08, 0.06])
        atoms.set_velocities(np.random.default_rng(0).normal(scale=0.01, size=(len(atoms), 3)))
        start, work, conserved = atoms.get_total_energy(), FieldWork(atoms), []
        dynamics = VelocityVerlet(atoms, step * units.fs)
        dynamics.attach(work)
        dynamics.attach(lambda a=atoms, w=work, c=conserved: c.append(a.get_total_energy() - w.work))  # after the work
        dynamics.run(round(30 / step))
        errors.append(np.abs(np.array(conserved) - start).max())
        works.append(work.work)
    assert abs(works[1]) > 5 * errors[1]  # without the work the energy would be off by so much
    assert errors[1] < 0.35 * errors[0]
    assert works[0] == pytest.approx(works[1], rel=1e-2)


def test_optimizers_run(salt, methanol):
    methanol.calc = Calculator(small_model(charge_scale=0.005))
    start = methanol.get_potential_energy()
    BFGS(methanol, logfile=None).run(fmax=0.01, steps=5)
    assert methanol.get_potential_energy() < start
    salt.calc = Calculator(small_model(charge_scale=0.005), skin=0.3)
    start = salt.get_potential_energy()
    BFGS(FrechetCellFilter(salt), logfile=None).run(fmax=0.01, steps=5)
    assert salt.get_potential_energy() < start


def test_trajectories_keep_the_results(salt, tmp_path):
    salt.calc = Calculator([small_model(0), small_model(1)], epsilon_infinity=2.0)
    salt.get_forces()
    with Trajectory(tmp_path / "run.traj", "w", salt) as trajectory:
        trajectory.write()
    again = read(tmp_path / "run.traj")
    assert again.get_potential_energy() == salt.get_potential_energy()
    np.testing.assert_array_equal(again.get_charges(), salt.get_charges())
    salt.write(tmp_path / "run.extxyz")
    np.testing.assert_allclose(read(tmp_path / "run.extxyz").get_forces(), salt.get_forces(), atol=1e-7)


def test_copies_compute_the_same(salt):
    calc = Calculator(small_model(), epsilon_infinity=2.0)
    salt.calc = calc
    expected = salt.get_forces()
    for other in (copy.deepcopy(calc), pickle.loads(pickle.dumps(calc))):
        twin = salt.copy()
        twin.calc = other
        assert np.array_equal(twin.get_forces(), expected)
    assert copy.deepcopy(salt).get_potential_energy() == salt.get_potential_energy()


def test_several_models_give_mean_and_spread(salt, close):
    models = [small_model(seed, cutoff=2.4 + 0.1 * seed) for seed in range(3)]
    energies, forces = [], []
    for model in models:
        salt.calc = Calculator(model)
        energies.append(salt.get_potential_energy())
        forces.append(salt.get_forces())
    for given in (models, Ensemble(models)):
        salt.calc = Calculator(given)
        close(salt.get_potential_energy(), np.mean(energies))
        close(salt.get_forces(), np.mean(forces, axis=0))
        salt.get_stress()
        close(salt.calc.results["energy_std"], np.std(energies, ddof=1))
        close(salt.calc.results["forces_std"], np.std(forces, axis=0, ddof=1))
        assert salt.calc.results["stress_std"].shape == (6,)
    with pytest.raises(ValueError, match="mixes"):
        Calculator([models[0], small_model(long_range=False)])
    with pytest.raises(ValueError, match="empty list"):
        Calculator([])


def test_models_are_loaded_by_path(salt, tmp_path):
    small_model().save(tmp_path / "a.ff")
    small_model(1).save(tmp_path / "b.ff")
    salt.calc = Calculator(str(tmp_path / "a.ff"))
    one = salt.get_potential_energy()
    salt.calc = Calculator([tmp_path / "a.ff", tmp_path / "b.ff"])
    salt.get_potential_energy()
    assert len(salt.calc.models) == 2
    salt.calc = Calculator(small_model())
    assert salt.get_potential_energy() == one
    with pytest.raises(ValueError, match="Shipped models"):
        Calculator("no-such-model")


def test_total_charge_comes_from_info_and_is_watched(methanol):
    methanol.calc = Calculator(small_model(total_charge="constraint"))
    with pytest.raises(ValueError, match="needs the total charge"):
        methanol.get_potential_energy()
    methanol.info["total_charge"] = 1
    first = methanol.get_potential_energy()
    np.testing.assert_allclose(methanol.get_charges().sum(), 1.0)
    methanol.info["total_charge"] = 0
    assert methanol.get_potential_energy() != first
    np.testing.assert_allclose(methanol.get_charges().sum(), 0.0, atol=1e-12)
    methanol.calc = Calculator(small_model(total_charge="constraint"), total_charge=1.0)
    assert methanol.get_potential_energy() == first


def test_short_range_model_has_no_charges(salt):
    salt.calc = Calculator(small_model(long_range=False))
    assert salt.get_stress().shape == (6,)
    with pytest.raises(PropertyNotImplementedError):
        salt.get_charges()


def test_unsound_structures_are_refused(methanol):
    calc = Calculator(small_model())
    with pytest.raises(ValueError, match="does not know F"):
        Atoms("HF", [[0, 0, 0], [0, 0, 1]], calculator=calc).get_potential_energy()
    methanol.calc = calc
    methanol.positions[2, 0] = np.nan
    with pytest.raises(ValueError, match="atom 2"):
        methanol.get_forces()
    with pytest.raises(ValueError, match="axis 1"):
        Atoms("H2", [[0, 0, 0], [0, 0, 1]], cell=[4, 0, 4], pbc=True, calculator=calc).get_forces()
    assert Atoms("H", calculator=calc).get_forces().shape == (1, 3)


def test_other_precision_leaves_the_model_alone(salt):
    import torch

    model = small_model()
    salt.calc = Calculator(model, dtype=torch.float32)
    single = salt.get_potential_energy()
    assert model.dtype == torch.float64
    salt.calc = Calculator(model)
    assert single == pytest.approx(salt.get_potential_energy(), abs=1e-4)
    assert single != salt.get_potential_energy()


def test_the_benchmark_of_energy_conservation_says_what_it_did(salt, tmp_path, monkeypatch, capsys):
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "nve.py"
    spec = importlib.util.spec_from_file_location("nve", path)
    assert spec is not None
    assert spec.loader is not None
    nve = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(nve)
    model, structure, table = tmp_path / "model.ff", tmp_path / "salt.extxyz", tmp_path / "nve.csv"
    small_model(card={"epsilon_infinity": 1.0}).save(model)
    salt.write(structure)
    options = ["--repeat", "2", "1", "1", "--picoseconds", "0.002", "--record", str(table)]
    monkeypatch.setattr("sys.argv", ["nve.py", str(model), str(structure), *options])
    nve.main()
    said = capsys.readouterr().out
    assert "16 atoms, 4 steps of 0.5 fs" in said
    assert "prepared 1 time(s)" in said
    assert len(table.read_text().splitlines()) == 6
