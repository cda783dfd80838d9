"""Models with response: every output is a derivative of the one energy, or is said not to be."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.md.verlet import VelocityVerlet
from small_models import small_model

from farfield.atoms.batch import concatenate
from farfield.electrostatics.susceptibility import Response
from farfield.engines.ase import Calculator
from farfield.evaluation.evaluate import evaluate
from farfield.observables import check_stability, effective_epsilon, forces_in_field, stability
from farfield.units import COULOMB_CONSTANT

FIELD = [0.08, -0.05, 0.11]
MODELS = {
    "κ": {"dipoles": False, "induced_charges": True},
    "α": {"induced_dipoles": True},
    "κ+α": {"induced_charges": True, "induced_dipoles": True, "anisotropic": True, "total_charge": "constraint"},
}


def polarizable(model: str, mode: str, **card):
    return small_model(2, charge_scale=0.4, response=mode, card=card, **MODELS[model])


def charged(atoms: Atoms, charge: float = 0.0) -> Atoms:
    atoms.info["total_charge"] = charge
    return atoms


#: Periodic axes of slabs and wires.
PERIODIC = {"slab": (True, False, True), "wire": (False, False, True)}


def across(atoms: Atoms) -> np.ndarray:
    """Projector on the open directions."""
    periodic = atoms.cell.array[atoms.pbc]
    return np.eye(3) - np.linalg.pinv(periodic) @ periodic


def water(pbc=False) -> Atoms:
    atoms = charged(molecule("H2O", cell=[[6.0, 0.2, 0.0], [0.4, 6.3, 0.1], [0.0, -0.3, 6.6]], pbc=pbc), 1.0)
    atoms.rattle(0.05, seed=1)
    return atoms


def differences(function, values, step=1e-4):
    """Central differences of a function of an array, along new last axes."""
    values = np.asarray(values, dtype=float)
    slopes = np.empty(values.shape, dtype=object)
    for index in np.ndindex(values.shape):
        shift = np.zeros_like(values)
        shift[index] = step
        slopes[index] = (function(values + shift) - function(values - shift)) / (2 * step)
    first = np.asarray(slopes.flat[0])
    return np.stack([np.asarray(s) for s in slopes.flat], axis=-1).reshape(*first.shape, *values.shape)


@pytest.mark.parametrize("mode", ["one-shot", "scf"])
@pytest.mark.parametrize("model", MODELS)
def test_open_systems_have_everything_from_one_energy(model, mode):
    """Forces, P = −∂E/∂F, Z* both ways, polarizability both ways, by finite differences; charged, gauge turned."""
    far = polarizable(model, mode, gauge_sign=-1)
    atoms = water()
    names = ["energy", "forces", "polarization", "born_charges", "polarizability", "atomic_polarizabilities"]
    found = far.compute(atoms, names, external_field=FIELD)

    def at(positions=None, field=FIELD, name="energy"):
        moved = atoms.copy()
        if positions is not None:
            moved.positions[:] = positions
        return far.compute(moved, [name], external_field=field)[name].squeeze()

    close = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(found["forces"], -differences(lambda r: at(r), atoms.positions), **close)
    np.testing.assert_allclose(found["polarization"][0], -differences(lambda f: at(field=f), FIELD), **close)
    by_position = differences(lambda r: at(r, name="polarization"), atoms.positions)
    np.testing.assert_allclose(found["born_charges"], by_position.transpose(1, 0, 2), **close)
    by_field = differences(lambda f: at(field=f, name="forces"), FIELD)
    np.testing.assert_allclose(found["born_charges"], by_field.transpose(0, 2, 1), **close)
    np.testing.assert_allclose(found["born_charges"].sum(0), np.eye(3), **close)
    answer = COULOMB_CONSTANT * differences(lambda f: at(field=f, name="polarization"), FIELD)
    np.testing.assert_allclose(found["polarizability"][0], answer, **close)
    np.testing.assert_allclose(found["atomic_polarizabilities"].sum(0), answer, **close)
    assert np.abs(answer).max() > 0.05
    # what was induced is the answer to the multipoles, too
    none = far.compute(atoms, ["induced_charges", "induced_dipoles", "polarizability"])
    np.testing.assert_allclose(none["polarizability"], found["polarizability"], **close)
    assert abs(none["induced_charges"].sum()) < 1e-9
    assert np.abs(none["induced_charges"]).max() + np.abs(none["induced_dipoles"]).max() > 1e-4


@pytest.mark.parametrize("mode", ["one-shot", "scf"])
@pytest.mark.parametrize("kind", PERIODIC)
@pytest.mark.parametrize("model", ["κ", "κ+α"])
def test_slabs_and_wires_have_all_along_open_directions_from_one_energy(model, kind, mode):
    """As open systems do: charged, screened, the gauge turned, in a field along the normal of an oblique cell."""
    far = polarizable(model, mode, gauge_sign=-1)
    atoms = water(PERIODIC[kind])
    normal = across(atoms)
    in_field, options = normal @ [0.3, 0.2, 0.4], {"epsilon_infinity": 1.3}
    names = ["energy", "forces", "field_forces", "polarization", "born_charges", "polarizability"]
    found = far.compute(atoms, names, external_field=in_field, **options)

    def at(positions=None, field=in_field, name="energy"):
        moved = atoms.copy()
        if positions is not None:
            moved.positions[:] = positions
        return far.compute(moved, [name], external_field=field, **options)[name].squeeze()

    close = {"rtol": 2e-6, "atol": 2e-6}
    np.testing.assert_allclose(found["field_forces"], 0.0, atol=1e-12)
    np.testing.assert_allclose(found["forces"], -differences(lambda r: at(r), atoms.positions), **close)
    np.testing.assert_allclose(
        normal @ found["polarization"][0], -normal @ differences(lambda f: at(field=f), in_field), **close
    )
    rows = np.einsum("ca,iab->icb", normal, found["born_charges"])
    by_position = differences(lambda r: at(r, name="polarization"), atoms.positions)
    np.testing.assert_allclose(rows, np.einsum("ca,aib->icb", normal, by_position), **close)
    by_field = differences(lambda f: at(field=f, name="forces"), in_field)
    np.testing.assert_allclose(rows, np.einsum("ca,iba->icb", normal, by_field), **close)
    np.testing.assert_allclose(rows.sum(0), normal, **close)  # of one charge
    answer = COULOMB_CONSTANT * differences(lambda f: at(field=f, name="polarization"), in_field)
    np.testing.assert_allclose(found["polarizability"][0], answer, **close)
    assert np.linalg.eigvalsh(answer)[-1] > 0.05


@pytest.mark.parametrize("mode", ["one-shot", "scf"])
@pytest.mark.parametrize("kind", [*PERIODIC, "bulk"])
def test_along_periodic_directions_induced_charges_stay_out(kind, mode):
    """There all is what it is where no field acts on charges; along open directions nothing is.

    A self-consistent α has elements between open and periodic directions: charges that the normal field induces turn
    dipoles into the plane.
    """
    atoms = water(PERIODIC.get(kind, True))
    normal = across(atoms) if kind in PERIODIC else np.zeros((3, 3))
    along = np.eye(3) - normal
    found = []
    for acts in (True, False):
        far = polarizable("κ+α", mode, epsilon_infinity=1.2)
        far.potential.long_range.linear_response.field_on_charges = acts
        found.append(
            far.compute(
                atoms,
                ["polarization", "born_charges", "forces", "polarizability"],
                external_field=along @ FIELD,
                allow_unstable=True,
            )
        )
    for name in ("polarization", "born_charges", "polarizability"):
        change = found[0][name] - found[1][name]
        inside = np.einsum("ca,na...->nc...", along, change)
        np.testing.assert_allclose(inside @ along if name == "polarizability" else inside, 0.0, atol=1e-9)
        if kind != "bulk":
            assert np.abs(change).max() > 1e-3
    np.testing.assert_allclose(found[0]["forces"], found[1]["forces"], atol=1e-9)


@pytest.mark.parametrize("mode", ["one-shot", "scf"])
def test_the_quadrupole_counts_induced_charges_but_along_periodic_directions(mode):
    """Σ (q̃ + Δq) dd + (u + Δu)d + d(u + Δu) less Σ Δq d∥d∥, without its trace; of clusters all of it."""
    far = polarizable("κ+α", mode)
    for pbc in (False, *PERIODIC.values(), True):
        atoms = water(pbc)
        names = ["charges", "atomic_dipoles", "induced_charges", "induced_dipoles", "quadrupole"]
        found = far.compute(atoms, names, allow_unstable=True)
        d = atoms.positions - atoms.positions.mean(0)
        along = d @ (np.eye(3) - (across(atoms) if np.any(pbc) else np.eye(3)))
        charges = found["charges"] - (found["charges"].sum() - 1.0) / len(atoms)
        u, q = found["atomic_dipoles"] + found["induced_dipoles"], found["induced_charges"]
        second = np.einsum("i,ia,ib->ab", charges + q, d, d) - np.einsum("i,ia,ib->ab", q, along, along)
        second += u.T @ d + d.T @ u
        expected = second - np.trace(second) / 3.0 * np.eye(3)
        np.testing.assert_allclose(found["quadrupole"][0], expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("mode", ["one-shot", "scf"])
@pytest.mark.parametrize("pbc", [(True, True, True), *PERIODIC.values()], ids=["bulk", *PERIODIC])
def test_periodic_forces_in_a_field_are_those_of_the_born_charges(pbc, mode):
    """To first order f = f₀ + F·Z*; and the polarizability is the answer of the polarization to the field."""
    far = polarizable("κ+α", mode, epsilon_infinity=1.8)
    atoms = water(pbc)
    options = {"allow_unstable": True, "epsilon_infinity": 1.8 if all(pbc) else 1.3}
    found = far.compute(atoms, ["forces", "born_charges", "polarizability", "epsilon_e"], **options)
    slope = differences(
        lambda f: far.compute(atoms, ["forces"], external_field=f, **options)["forces"], np.zeros(3), 1e-3
    )
    np.testing.assert_allclose(slope, found["born_charges"].transpose(0, 2, 1), rtol=1e-5, atol=1e-6)
    scale = found["epsilon_e"][0] ** 0.5
    answer = differences(
        lambda f: far.compute(atoms, ["polarization"], external_field=f, **options)["polarization"][0], np.zeros(3)
    )
    np.testing.assert_allclose(found["polarizability"][0], COULOMB_CONSTANT * answer, rtol=1e-6, atol=1e-7)
    assert (scale < 1.8**0.5) if all(pbc) else scale == pytest.approx(1.3**0.5)
    batch = far.add_neighbors(far.as_batch(atoms))
    given = torch.tensor(FIELD)
    extra = forces_in_field(far, batch, given, scale=far.scale(batch, options["epsilon_infinity"]))
    np.testing.assert_allclose(extra.detach().numpy(), np.einsum("a,iab->ib", FIELD, found["born_charges"]), atol=1e-9)


@pytest.mark.parametrize("model", ["α", "κ+α"])
def test_a_molecule_in_a_large_box_has_the_born_charges_of_the_open_molecule(model):
    """Of dipoles induced by it: those of induced charges stay out in periodic cells."""
    far = polarizable(model, "one-shot", epsilon_infinity=1.0)
    far.potential.long_range.softness = None  # leaves the polarizability alone
    alone = charged(molecule("H2O"))
    boxed = charged(molecule("H2O", cell=np.eye(3) * 60.0, pbc=True))
    options = {"harmonics": 8, "mean": "attached", "screening": "published"}
    open_born = far.compute(alone, ["born_charges"])["born_charges"]
    np.testing.assert_allclose(far.compute(boxed, ["born_charges"], **options)["born_charges"], open_born, atol=2e-3)


@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False)], ids=["bulk", "slab"])
def test_a_supercell_has_the_same_born_charges_and_twice_the_polarizability(pbc):
    """Along the normal of a slab without any harmonics, and so to the accuracy of the sums."""
    far = polarizable("κ+α", "scf", epsilon_infinity=2.3)
    cell = charged(bulk("NaCl", "rocksalt", 5.6, cubic=True))
    cell.pbc = pbc
    cell.rattle(0.1, seed=2)
    double = charged(cell.repeat((2, 1, 1)))
    names = ["born_charges", "polarizability", "epsilon_e", "chi", "energy"]
    one, two = (far.compute(atoms, names, harmonics=10) for atoms in (cell, double))
    np.testing.assert_allclose(two["energy"], 2 * one["energy"], rtol=1e-6)
    np.testing.assert_allclose(two["chi"], one["chi"], rtol=1e-6)
    np.testing.assert_allclose(two["epsilon_e"], one["epsilon_e"], rtol=1e-5)
    # off-diagonal elements are small differences: by what the accuracy of either sum leaves of the diagonal
    np.testing.assert_allclose(two["polarizability"], 2 * one["polarizability"], rtol=1e-4, atol=1e-5)
    changes = two["born_charges"][: len(cell)] - one["born_charges"]
    np.testing.assert_allclose(changes, 0.0, atol=5e-3)
    if not all(pbc):
        np.testing.assert_allclose(changes[:, 2], 0.0, atol=2e-5)


def test_screening_leaves_of_epsilon_what_the_polarizability_does_not_make(close):
    one_shot, scf = polarizable("α", "one-shot", epsilon_infinity=2.0), polarizable("α", "scf", epsilon_infinity=2.0)
    atoms = charged(bulk("NaCl", "rocksalt", 5.6, cubic=True))
    found = one_shot.compute(atoms, ["chi", "epsilon_e", "charges", "latent_charges", "potential", "polarizability"])
    chi = found["chi"][0]
    assert 0.0 < chi < 1.0
    assert found["epsilon_e"][0] == pytest.approx(2.0 * (1.0 - chi))
    np.testing.assert_allclose(found["charges"], found["epsilon_e"] ** 0.5 * found["latent_charges"])
    volume = atoms.get_volume()
    isotropic = found["polarizability"][0].trace() / 3.0
    assert isotropic * 4.0 * math.pi / volume == pytest.approx(chi * found["epsilon_e"][0])
    published = one_shot.compute(atoms, ["epsilon_e"], screening="published")["epsilon_e"]
    assert published[0] == pytest.approx(2.0 / (1.0 + chi))
    found = scf.compute(atoms, ["epsilon_e", "polarizability"])
    own = 4.0 * math.pi * found["polarizability"][0].trace() / 3.0 / volume
    # ε∞ = ε_e ε_m, and what is shown is ε_e (ε_m − 1)
    assert found["epsilon_e"][0] + own == pytest.approx(2.0)


def test_one_shot_response_that_collapses_in_long_waves_is_refused_or_warned_of():
    batch = small_model().as_batch(charged(bulk("NaCl", "rocksalt", 5.6, cubic=True)))
    n, volume = batch.n_atoms, 5.6**3

    def alpha(chi):
        return Response(None, torch.full((n,), chi * volume / (4 * math.pi * COULOMB_CONSTANT * n)).double())

    def kappa(k_d):
        return Response(torch.full((n,), k_d**2 * volume / (4 * math.pi * COULOMB_CONSTANT * n)).double())

    assert float(stability(batch, alpha(0.4)).chi) == pytest.approx(0.4)
    assert float(stability(batch, kappa(0.3)).k_d) == pytest.approx(0.3)
    check_stability(batch, alpha(0.49))
    check_stability(batch, kappa(1.12))  # 2π/5.6 = 1.122
    with pytest.warns(UserWarning, match="χ = 0.6"):
        check_stability(batch, alpha(0.6))
    with pytest.raises(ValueError, match=r"system 0 is unstable.*χ = .* is 1.1 .*allow_unstable"):
        check_stability(batch, alpha(1.1))
    with pytest.raises(ValueError, match="k_D = .* is 1.13/Å but must stay below 2π/L = 1.12/Å"):
        check_stability(batch, kappa(1.13))
    opened = batch.replace(pbc=torch.zeros(1, 3, dtype=torch.bool))
    alphas = torch.cat([alpha(5.0).polarizability, alpha(0.1).polarizability])
    check_stability(concatenate([opened, batch]), Response(None, alphas))
    with pytest.raises(ValueError, match="nothing of ε∞ is left"):
        effective_epsilon(batch, torch.full((1,), 2.0).double(), alpha(1.1))
    strong = small_model(induced_dipoles=True, polarizability_scale=0.9)
    dense = charged(bulk("NaCl", "rocksalt", 4.4, cubic=True))
    with pytest.raises(ValueError, match="unstable"):
        strong.compute(dense)
    assert np.isfinite(strong.compute(dense, allow_unstable=True)["energy"]).all()


def test_ase_gives_polarizability_and_takes_a_field():
    far = polarizable("κ+α", "scf")
    atoms = water()
    atoms.calc = Calculator(far)
    before = atoms.get_potential_energy()
    polarizability = atoms.calc.get_property("polarizability", atoms)
    np.testing.assert_allclose(polarizability, far.compute(atoms, ["polarizability"])["polarizability"][0])
    assert atoms.calc.get_property("induced_dipoles", atoms).shape == (3, 3)
    dipole = atoms.get_dipole_moment()
    atoms.calc.external_field = [1e-3, 0.0, 0.0]
    change = atoms.get_potential_energy() - before
    assert change == pytest.approx(-1e-3 * dipole[0], rel=1e-2)
    assert atoms.get_dipole_moment()[0] > dipole[0]
    atoms.calc.external_field = None
    assert atoms.get_potential_energy() == pytest.approx(before)
    boxed = water(True)
    boxed.calc = Calculator(far, external_field=FIELD, allow_unstable=True)
    boxed.get_forces()
    with pytest.raises(Exception, match="stress is not defined in an external field"):
        boxed.get_stress()
    plain = Calculator(small_model())
    assert "polarizability" not in plain.implemented_properties
    for field, message in (([1.0, 2.0], "has shape"), ([np.nan, 0.0, 0.0], "finite")):
        with pytest.raises(ValueError, match=message):
            far.compute(water(), external_field=field)
    with pytest.raises(ValueError, match="`stress` is not defined"):
        far.compute(water(True), ["stress"], external_field=FIELD)


def test_ase_takes_a_field_along_the_normal_of_a_slab():
    """Of what is then: forces by finite differences, E = E₀ − F·P₀ − ½F·α·F, and dynamics that conserve the energy."""
    far = polarizable("κ+α", "one-shot")
    atoms = water(PERIODIC["slab"])
    field = across(atoms) @ [0.2, 0.3, 0.1]
    atoms.calc = Calculator(far, epsilon_infinity=1.3)
    energy, dipole = atoms.get_potential_energy(), atoms.get_dipole_moment()
    answer = atoms.calc.get_property("polarizability", atoms) / COULOMB_CONSTANT
    charges = atoms.calc.get_property("induced_charges", atoms)
    atoms.calc.external_field = field.tolist()
    expected = energy - field @ dipole - 0.5 * field @ answer @ field
    assert atoms.get_potential_energy() == pytest.approx(expected, abs=1e-8)
    np.testing.assert_allclose(atoms.get_dipole_moment(), dipole + answer @ field, atol=1e-8)
    assert np.abs(atoms.calc.get_property("induced_charges", atoms) - charges).max() > 1e-3
    still = atoms.copy()

    def at(positions):
        still.positions[:] = positions
        still.calc = atoms.calc
        return still.get_potential_energy()

    np.testing.assert_allclose(atoms.get_forces(), -differences(at, atoms.positions), rtol=1e-5, atol=1e-6)
    totals, kinetic = [], []
    dynamics = VelocityVerlet(atoms, timestep=0.1 * units.fs)
    for _ in range(10):
        dynamics.run(1)
        totals.append(atoms.get_total_energy())
        kinetic.append(atoms.get_kinetic_energy())
    assert np.ptp(totals) < 0.01 * np.ptp(kinetic)


def test_evaluate_compares_polarizabilities():
    far = polarizable("α", "one-shot")
    structures = [charged(molecule(name)) for name in ("H2O", "CO2", "CH3OH")]
    truth = far.compute(structures, ["polarizability"])["polarizability"]
    for atoms, value in zip(structures, truth, strict=True):
        atoms.info["polarizability"] = (value + 0.5 * np.eye(3)).reshape(-1)
    entry = evaluate(far, structures).as_dict()["metrics"]["polarizability"]
    assert entry["unit"] == "Å³"
    assert entry["mae"] == pytest.approx(0.5 / 3.0)
    with pytest.raises(ValueError, match="no response, so 3 polarizability labels"):
        evaluate(small_model(), structures)


def test_evaluate_compares_polarizabilities_of_bulk_with_dielectric_tensors():
    """Slabs are left out; of one-shot response, and of what a number for ε∞ leaves to ε_e, the notes speak."""
    cell = charged(bulk("NaCl", "rocksalt", 5.6, cubic=True))
    slab = charged(cell.copy())
    slab.pbc = (True, True, False)
    volume = cell.get_volume()

    def compared(mode, **card):
        far = polarizable("α", mode, **card)
        truth = far.compute([cell, slab], ["polarizability"], epsilon_infinity=card.get("epsilon_infinity"))
        cell.info["epsilon_inf"] = np.eye(3) + 4.0 * math.pi * truth["polarizability"][0] / volume + 0.01 * np.eye(3)
        slab.info["polarizability"] = truth["polarizability"][1]
        with pytest.warns(UserWarning, match="polarizabilit") as caught:
            found = evaluate(far, [cell, slab])
        assert [str(warning.message) for warning in caught] == found.notes
        assert "1 polarizability labels of slabs or wires are left out" in found.notes[0]
        return found

    found = compared("scf", epsilon_infinity="explicit")
    assert len(found.notes) == 1
    metrics = found.comparisons["polarizability"].metrics
    assert metrics.rmse == pytest.approx(0.01 * volume / (4.0 * math.pi) / 3.0**0.5, rel=1e-6)
    assert found.comparisons["polarizability"].predicted.shape == (1, 9)
    assert any("one-shot response" in note for note in compared("one-shot", epsilon_infinity=1.5).notes)
    notes = " ".join(compared("scf", epsilon_infinity=1.5).notes)
    rest = polarizable("α", "scf", epsilon_infinity=1.5).compute(cell, ["epsilon_e"])["epsilon_e"][0]
    assert f"leaves for its charges, {rest:.3g} in the mean" in notes
    assert "polarizabilities those of the model's own response" in " ".join(compared("scf").notes)
