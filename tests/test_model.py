"""The face of a model: files that give back the same bits, clear errors, gauge, screening, chunks."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from ase import Atoms
from ase.build import bulk
from ase.build import molecule as named_molecule
from ase.calculators.singlepoint import SinglePointCalculator
from small_models import small_model

from farfield import observables, zoo
from farfield.card import ModelCard
from farfield.ensemble import Ensemble
from farfield.evaluation.evaluate import evaluate
from farfield.gauge import BORN_SYSTEMS, find_gauge, fix_gauge
from farfield.model import PROPERTIES, Model, load
from farfield.model_file import ModelFileError
from farfield.observables import MultipoleModel

ALL = [name for name in PROPERTIES if name != "stress"]


@pytest.fixture
def molecules():
    return [named_molecule(name) for name in ("H2O", "CH3OH", "CO2", "H2")]


@pytest.fixture
def salt():
    atoms = bulk("NaCl", "rocksalt", 5.6, cubic=True)
    atoms.rattle(0.1, seed=3)
    return atoms


def same_bits(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype, name
            assert value.tobytes() == other[name].tobytes(), name
        else:
            assert value == other[name]


# ---- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [0, 1])
def test_saved_and_loaded_model_gives_the_same_bits(tmp_path, molecules, salt, dtype, layers):
    model = small_model(3, dtype, layers=layers, card={"gauge_sign": -1, "epsilon_infinity": 2.3})
    model.save(tmp_path / "small.ff")
    state = torch.get_rng_state()
    again = load(tmp_path / "small.ff")
    assert torch.equal(state, torch.get_rng_state()), "loading drew from the user's random numbers"
    assert again.dtype == dtype
    assert again.card == model.card
    same_bits(again.compute(molecules, ALL), model.compute(molecules, ALL))
    bulk_properties = ["energy", "forces", "stress", "charges"]
    same_bits(again.compute(salt, bulk_properties), model.compute(salt, bulk_properties))


def test_file_holds_no_pickle_and_says_what_it_is(tmp_path):
    small_model(card={"training_data": "none", "licence": "CC0"}).save(tmp_path / "small.ff")
    with safetensors.safe_open(str(tmp_path / "small.ff"), "pt") as file:
        header = json.loads(file.metadata()["farfield"])
    assert header["format"] == 1
    assert header["card"]["licence"] == "CC0"
    assert header["card"]["elements"] == [1, 6, 8, 11, 17]
    assert header["card"]["reference_energies"]["8"] == -2.75
    assert header["card"]["receptive_radius"] == 2.7
    assert header["card"]["units"]["energy"] == "eV"
    assert header["potential"]["backbone"]["kind"] == "cace"


def test_card_round_trips_and_ignores_fields_of_later_versions():
    card = ModelCard(
        name="x", elements=(1, 8), reference_energies={1: -13.5}, metrics={"a": {"rmse": 1.0}}, date="today"
    )
    values = json.loads(json.dumps(card.to_json()))
    assert ModelCard.from_json({**values, "later": 1}) == card


@pytest.mark.parametrize("wrong", [{"gauge_sign": 0}, {"epsilon_infinity": -1.0}, {"epsilon_infinity": 0.0}])
def test_card_refuses_nonsense(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModelCard(**wrong)


def test_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "small.ff"
    small_model(1).save(path)
    before = path.read_bytes()

    def full_disk(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("farfield.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        small_model(2).save(path)
    with pytest.raises(ValueError, match="JSON"):
        small_model(2, card={"metrics": {"rmse": float("nan")}}).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        small_model().save(tmp_path / "nowhere" / "small.ff")


def test_files_that_are_no_models_are_refused(tmp_path):
    path = tmp_path / "small.ff"
    small_model().save(path)
    whole = path.read_bytes()
    cut = tmp_path / "cut.ff"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelFileError, match="damaged"):
        load(cut)
    text = tmp_path / "text.ff"
    text.write_text("not a model")
    with pytest.raises(ModelFileError, match="not a farfield model"):
        load(text)
    pickled = tmp_path / "pickled.ff"
    torch.save({"a": torch.zeros(1)}, pickled)
    with pytest.raises(ModelFileError, match="not a farfield model"):
        load(pickled)
    foreign = tmp_path / "foreign.ff"
    safetensors.torch.save_file({"a": torch.zeros(1)}, foreign, metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="no key 'farfield'"):
        load(foreign)
    with pytest.raises(ModelFileError, match="folder"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99, "farfield": "7.0"}, "format 99, written by farfield 7.0"),
        ({"format": "one"}, "damaged"),
        ({"potential": {"backbone": {"kind": "unheard-of"}}}, "unheard-of"),
        ({"dtype": "float7"}, "cannot be rebuilt"),
        ({"card": {"gauge_sign": 5}}, "gauge_sign"),
    ],
)
def test_newer_or_damaged_headers_are_refused_by_name(tmp_path, change, message):
    path = tmp_path / "small.ff"
    small_model().save(path)
    tensors = safetensors.torch.load_file(path)
    with safetensors.safe_open(str(path), "pt") as file:
        header = json.loads(file.metadata()["farfield"])
    safetensors.torch.save_file(tensors, path, metadata={"farfield": json.dumps({**header, **change})})
    with pytest.raises(ModelFileError, match=message):
        load(path)
    tensors.popitem()
    safetensors.torch.save_file(tensors, path, metadata={"farfield": json.dumps(header)})
    with pytest.raises(ModelFileError, match="Missing key"):
        load(path)


def test_models_are_found_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Unknown model 'no-such-model'. Shipped models are"):
        load("no-such-model")
    with pytest.raises(FileNotFoundError, match="no-such-model.ff"):
        load("no-such-model.ff")
    monkeypatch.setattr(zoo, "__file__", str(tmp_path / "__init__.py"))
    small_model().save(tmp_path / "tiny.ff")
    assert zoo.names() == ["tiny"]
    assert load("tiny").card.name == "small"


@pytest.mark.parametrize("name", zoo.names())
def test_shipped_models_load(name):
    model = load(name)
    assert model.card.training_data
    assert model.card.licence
    assert zoo.path(name).stat().st_size <= 5 * 2**20


# ---- outputs ---------------------------------------------------------------------------------------------------------


def test_shapes_and_names(molecules, salt):
    result = small_model().compute([*molecules, salt], PROPERTIES)
    n = sum(len(atoms) for atoms in molecules) + len(salt)
    shapes = {name: value.shape for name, value in result.items() if name != "screening"}
    assert shapes == {
        "energy": (5,), "forces": (n, 3), "stress": (5, 3, 3), "short_range_energy": (5,), "long_range_energy": (5,),
        "charges": (n,), "atomic_dipoles": (n, 3), "atomic_quadrupoles": (n, 3, 3), "latent_charges": (n,),
        "latent_dipoles": (n, 3), "latent_quadrupoles": (n, 3, 3), "dipole": (5, 3), "quadrupole": (5, 3, 3),
        "induced_charges": (n,), "induced_dipoles": (n, 3), "potential": (n,), "field": (n, 3),
        "polarizability": (5, 3, 3), "atomic_polarizabilities": (n, 3, 3), "chi": (5,), "k_d": (5,), "epsilon_e": (5,),
        "polarization": (5, 3), "born_charges": (n, 3, 3), "born_effective_charges": (n, 3, 3), "field_forces": (n, 3),
    }  # fmt: skip
    assert result["screening"] == ["vacuum"] * 4 + ["latent"]
    assert np.isnan(result["stress"][:4]).all()
    assert np.isfinite(result["stress"][4]).all()
    assert isinstance(small_model().compute(molecules, "dipole", as_tensors=True)["dipole"], torch.Tensor)


def test_chunks_do_not_change_anything(close, molecules, salt):
    model, structures = small_model(), [*molecules, salt, *molecules]
    whole = model.compute(structures, ALL)
    for max_atoms in (1, 7, 20):
        parts = model.compute(structures, ALL, max_atoms=max_atoms)
        for name in ALL:
            close(parts[name], whole[name])
    with pytest.raises(ValueError, match="max_atoms"):
        model.compute(structures, max_atoms=0)


def test_energy_and_moments_are_alike_with_and_without_derivatives(close, molecules):
    model = small_model()
    plain, both = (
        model.compute(molecules, ["energy", "dipole"]),
        model.compute(molecules, ["energy", "forces", "dipole"]),
    )
    close(plain["energy"], both["energy"])
    close(plain["dipole"], both["dipole"])
    close(model.compute(molecules, ["dipole"])["dipole"], both["dipole"])


def test_physical_multipoles_carry_sign_and_screening(close, salt):
    latent = small_model().compute(salt, ALL)
    screened = small_model(card={"gauge_sign": -1, "epsilon_infinity": 2.25}).compute(salt, ALL)
    assert latent["screening"] == ["latent"]
    assert screened["screening"] == ["epsilon_infinity=2.25"]
    for name in ("charges", "atomic_dipoles", "dipole", "quadrupole", "polarization", "born_charges"):
        close(screened[name], -1.5 * latent[name])
    for name in ("energy", "forces", "long_range_energy", "latent_charges"):
        close(screened[name], latent[name])
    override = small_model().compute(salt, ["charges"], epsilon_infinity=4.0)
    close(override["charges"], 2.0 * latent["charges"])
    with pytest.raises(ValueError, match="epsilon_infinity"):
        small_model().compute(salt, ["charges"], epsilon_infinity=-1.0)


def test_where_the_response_makes_all_of_epsilon_multipoles_are_physical_as_they_are(close, salt, molecules, tmp_path):
    """Also those of slabs; a number given takes its place."""
    far = {"induced_dipoles": True, "response": "scf"}
    latent = small_model(**far).compute(salt, ALL)
    model = small_model(card={"gauge_sign": -1, "epsilon_infinity": "explicit"}, **far)
    model.save(tmp_path / "model.ff")
    explicit = Model.from_file(tmp_path / "model.ff").compute(salt, ALL)
    assert explicit["screening"] == ["explicit"]
    close(explicit["born_charges"], -latent["born_charges"])
    slab = salt.copy()
    slab.pbc = (True, True, False)
    found = model.compute([slab, molecules[0]], ["charges", "epsilon_e"])
    assert found["screening"] == ["explicit", "vacuum"]
    assert found["epsilon_e"].tolist() == [1.0, 1.0]
    assert model.compute(salt, ["charges"], epsilon_infinity=1.5)["screening"] == ["epsilon_infinity=1.5"]
    assert small_model(**far).compute(salt, ["charges"], epsilon_infinity="explicit")["screening"] == ["explicit"]
    for less in ({}, {"induced_dipoles": True}, {"induced_charges": True, "response": "scf"}):
        with pytest.raises(ValueError, match=r"'explicit', but only induced dipoles that feel each other.*number"):
            small_model(**less).compute(salt, ["charges"], epsilon_infinity="explicit")


def test_open_systems_are_not_screened(close, molecules):
    plain = small_model().compute(molecules, ["charges", "dipole"])
    other = small_model(card={"epsilon_infinity": 5.0}).compute(molecules, ["charges", "dipole"], epsilon_infinity=7.0)
    assert other["screening"] == ["vacuum"] * 4
    close(plain["dipole"], other["dipole"])


def test_forces_in_a_field(close, molecules):
    model = small_model(card={"gauge_sign": -1})
    field = torch.tensor([0.1, 0.0, -0.2], dtype=torch.float64)
    born = model.compute(molecules, ["born_charges"])["born_charges"]
    close(model.forces_in_field(molecules, field), np.einsum("a,nab->nb", field.numpy(), born))


@pytest.mark.parametrize("layers", [0, 1])
def test_born_charges_are_derivatives_of_the_dipole(close, layers):
    model = small_model(layers=layers, card={"gauge_sign": -1})
    atoms, step = named_molecule("CH3OH"), 1e-5
    born = model.compute(atoms, ["born_charges"])["born_charges"]
    moved = []
    for index in range(len(atoms)):
        for axis in range(3):
            for sign in (1, -1):
                moved.append(atoms.copy())
                moved[-1].positions[index, axis] += sign * step
    dipoles = model.compute(moved, ["dipole"])["dipole"].reshape(len(atoms), 3, 2, 3)
    close(born, ((dipoles[:, :, 0] - dipoles[:, :, 1]) / (2 * step)).transpose(0, 2, 1), rtol=1e-6, atol=1e-6)


def test_observables_take_a_model_as_it_is(close, molecules):
    model = small_model(card={"gauge_sign": -1})
    batch = model.as_batch(molecules)
    assert isinstance(model, MultipoleModel)
    found = observables.dipole(model, batch, scale=model.scale(batch))
    close(found, model.compute(molecules, ["dipole"])["dipole"])


def test_wrong_requests_are_refused(molecules):
    model = small_model()
    with pytest.raises(ValueError, match="Unknown property 'enrgy'. Must be one of energy"):
        model.compute(molecules, ["enrgy"])
    with pytest.raises(ValueError, match="empty"):
        model.compute([])
    with pytest.raises(ValueError, match=r"does not know F, Xe: it was trained on H, C, O, Na, Cl only"):
        model.compute([Atoms("HF", [[0, 0, 0], [0, 0, 1]]), Atoms("Xe")])
    with pytest.raises(ValueError, match="no long-range part"):
        small_model(long_range=False).compute(molecules, ["charges"])
    assert small_model(long_range=False).compute(molecules, ["energy"])["energy"].shape == (4,)


# ---- total charge ----------------------------------------------------------------------------------------------------


def test_a_charge_that_all_training_systems_had_is_taken_where_none_is_given(close, molecules):
    model = small_model(total_charge="constraint", card={"total_charge": -1.0})
    batch = model.as_batch(molecules)

    def sums(**given):
        return batch.sum_over_atoms(torch.from_numpy(model.compute(molecules, ["charges"], **given)["charges"]))

    close(sums(), -torch.ones(4))
    close(sums(total_charge=2.0), torch.full((4,), 2.0))


def test_total_charge_comes_from_info_or_argument(close, molecules):
    model = small_model(total_charge="constraint")
    with pytest.raises(ValueError, match="needs the total charge"):
        model.compute(molecules)
    molecules[0].info["total_charge"] = 1.0
    with pytest.raises(ValueError, match="1 of 4"):
        model.compute(molecules)
    for index, atoms in enumerate(molecules):
        atoms.info["total_charge"] = float(index)
        atoms.info["q"] = -float(index)
    batch = model.as_batch(molecules)

    def sums(**given):
        return batch.sum_over_atoms(torch.from_numpy(model.compute(molecules, ["charges"], **given)["charges"]))

    close(sums(), torch.arange(4.0))
    close(sums(total_charge="q"), -torch.arange(4.0))
    close(sums(total_charge=2.0), torch.full((4,), 2.0))


def test_constraint_holds_in_either_gauge(close, molecules):
    for sign in (1, -1):
        model = small_model(total_charge="constraint", card={"gauge_sign": sign})
        result = model.compute(molecules, ["energy", "charges", "born_charges"], total_charge=1.0)
        batch = model.as_batch(molecules, 1.0)
        close(batch.sum_over_atoms(torch.from_numpy(result["charges"])), torch.ones(4))
        total = batch.sum_over_atoms(torch.from_numpy(result["born_charges"]))
        close(total, torch.eye(3).expand(4, 3, 3))


# ---- gauge -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_gauge_makes_the_most_electronegative_element_negative(molecules, seed):
    model = small_model(seed, dipoles=False)
    batch = model.as_batch(molecules)
    before = model.compute(molecules, ["energy", "charges"])
    sign = fix_gauge(model, batch)
    after = model.compute(molecules, ["energy", "charges"])
    assert after["charges"][batch.numbers.numpy() == 8].mean() < 0
    assert np.array_equal(after["charges"], sign * before["charges"])
    assert np.array_equal(after["energy"], before["energy"])
    assert "O" in model.card.gauge


@pytest.mark.parametrize("seed", range(4))
def test_gauge_of_atomic_dipoles_is_by_born_charges(molecules, seed):
    """Where dipoles do what charges could, the sign is that of both together, whatever the charges alone say."""
    model = small_model(seed, dipoles=True)
    batch = model.as_batch(molecules)
    oxygen = batch.numbers.numpy() == 8
    charges = set()
    for scale in (0.0, 10.0, -10.0):
        model.potential.long_range.dipoles.scale = scale
        fix_gauge(model, batch)
        answers = model.compute(molecules, ["born_charges", "charges"])
        assert answers["born_charges"][oxygen].trace(axis1=1, axis2=2).mean() < 0
        assert "Born charge of O" in model.card.gauge
        charges.add(float(np.sign(answers["charges"][oxygen].mean())))
    assert charges == {1.0, -1.0}, "charges alone should have said the opposite once"


def test_gauge_of_atomic_dipoles_turns_with_the_multipoles(molecules):
    """In ions too, whose total charge says nothing of the sign where no constraint binds them to it."""
    ions = [named_molecule("OH"), named_molecule("CH3O")]
    model = small_model(2, dipoles=True)
    batch = model.as_batch(ions, total_charge=-1.0)
    sign, reason = find_gauge(model.potential, batch)
    far = model.potential.long_range
    far.charges.scale, far.dipoles.scale = -far.charges.scale, -far.dipoles.scale
    assert find_gauge(model.potential, batch) == (-sign, reason)


def test_gauge_of_atomic_dipoles_looks_at_the_systems_that_tell(molecules):
    """Those with the most electronegative element, wherever they stand, and no more of them than are enough."""
    model = small_model(1, dipoles=True)
    methane = [model.as_batch(named_molecule("CH4")) for _ in range(BORN_SYSTEMS)]
    water = model.as_batch(named_molecule("H2O"))
    assert find_gauge(model.potential, [*methane, water]) == find_gauge(model.potential, water)
    enough = [water] * BORN_SYSTEMS
    assert f"{BORN_SYSTEMS} atoms" in find_gauge(model.potential, [*enough, water])[1]


def test_gauge_by_reference_dipoles(molecules):
    model = small_model(1)
    batch = model.as_batch(molecules)
    ours = torch.from_numpy(model.compute(batch, ["dipole"])["dipole"])
    ours[2] = torch.nan  # not known for this one
    assert fix_gauge(model, [batch], [ours]) == 1
    assert fix_gauge(model, [batch], [-ours]) == -1
    assert "reference dipoles" in model.card.gauge
    with pytest.raises(ValueError, match="one for each batch"):
        fix_gauge(model, [batch], [ours, ours])
    with pytest.raises(ValueError, match="empty"):
        fix_gauge(model, [])


@pytest.mark.parametrize("before", [1, -1])
def test_gauge_that_cannot_be_fixed_is_said_so(before):
    """A card keeps the sign that it has; a training, whose card is new, takes 1."""
    model = small_model(card={"gauge_sign": before})
    hydrogen = model.as_batch(named_molecule("H2"))
    assert fix_gauge(model, hydrogen) == before
    assert model.card.gauge.startswith("not fixed")
    assert find_gauge(model.potential, hydrogen) == (1, model.card.gauge)
    short = small_model(long_range=False)
    assert fix_gauge(short, short.as_batch(named_molecule("H2O"))) == 1
    assert "no charges" in short.card.gauge


def test_gauge_of_charges_that_are_zero_is_not_fixed(molecules):
    model = small_model(dipoles=False)
    model.potential.long_range.charges.scale = 0.0
    sign, said = find_gauge(model.potential, model.as_batch(molecules), unfixed=-1)
    assert sign == -1
    assert said.startswith("not fixed")


def test_gauge_is_the_same_in_one_batch_and_in_many(molecules):
    model = small_model(2)
    one = find_gauge(model.potential, model.as_batch(molecules))
    assert find_gauge(model.potential, (model.as_batch(m) for m in molecules)) == one


@pytest.mark.parametrize("seed", range(3))
def test_gauge_is_bound_by_a_constraint_to_charges(molecules, seed):
    model = small_model(seed, total_charge="constraint")
    batch = model.as_batch(molecules, total_charge=1.0)
    assert fix_gauge(model, batch) == 1
    assert "constraint" in model.card.gauge
    ours = torch.from_numpy(model.compute(batch, ["dipole"])["dipole"])
    assert fix_gauge(model, [batch], [-ours]) == 1
    assert "against the reference dipoles" in model.card.gauge
    fix_gauge(model, [batch], [ours])
    assert "against" not in model.card.gauge


# ---- several models --------------------------------------------------------------------------------------------------


def test_ensemble_gives_mean_and_spread(close, molecules):
    models = [small_model(seed) for seed in range(3)]
    result = Ensemble(models).compute(molecules, ["energy", "forces", "charges"])
    energies = np.stack([model.compute(molecules, ["energy"])["energy"] for model in models])
    close(result["energy"], energies.mean(0))
    close(result["energy_std"], energies.std(0, ddof=1))
    assert result["forces_std"].shape == result["forces"].shape
    assert result["screening"] == ["vacuum"] * 4


def test_what_an_ensemble_answers_is_said_as_of_one_model(salt):
    """Polarizability labels are left out of what has no response, and one-shot response of bulk is noted."""
    salt.info["polarizability"] = np.eye(3).ravel() * 5.0
    salt.calc = SinglePointCalculator(salt, energy=0.0)
    for far, note in (({}, "has no response"), ({"induced_dipoles": True, "polarizability_scale": 1e-3}, "one-shot")):
        models = [small_model(seed, card={"epsilon_infinity": 2.0}, **far) for seed in range(2)]
        with pytest.warns(UserWarning, match=note):
            evaluate(Ensemble(models), [salt])


def test_ensemble_of_unlike_models_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        Ensemble([small_model()])
    with pytest.raises(ValueError, match="mixes"):
        Ensemble([small_model(), small_model(long_range=False)])


def test_a_model_does_not_freeze_its_potential():
    # A model made of a potential in training must not stop that training.
    model = small_model()
    assert isinstance(model, Model)
    assert "long-range" in repr(model)
    assert not model.potential.training
    assert all(p.requires_grad for p in model.potential.parameters())


def test_charged_cells_are_not_repeated_where_atoms_feel_the_total_charge(salt):
    model = small_model(total_charge="feature")
    for ask in (
        lambda charge: model.compute(salt, "born_charges", exact=True, total_charge=charge),
        lambda charge: model.forces_in_field(salt, [0.1, 0.0, 0.0], exact=True, total_charge=charge),
    ):
        ask(0.0)
        with pytest.raises(ValueError, match="`exact` repeats periodic cells"):
            ask(1.0)
