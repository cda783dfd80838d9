"""MACELES: checkpoints that name the classes of the original `les`, and trainings with the drop-in in its place.

The original cannot be had here, so its checkpoints are imitated (`imitated_les`): real ones may differ.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_laws import HostLaws, mixed
from imitated_les import VARIANTS, structures
from mace_inputs import inputs_of
from potential_structures import joined
from torch import Tensor
from typer.testing import CliRunner

if os.environ.get("FARFIELD_HOST") != "mace" and importlib.util.find_spec("mace") is None:
    pytest.skip("mace-torch is not installed", allow_module_level=True)  # its own session must not pass by skipping

from ase import Atoms
from ase.calculators.emt import EMT
from ase.io import write

from farfield import Calculator, augment
from farfield.cli import app
from farfield.hosts.mace_models import importing
from farfield.hosts.pickles import load_module
from farfield.model import PROPERTIES, Model, load
from farfield.model_file import ModelFileError

HERE = Path(__file__).parent
# the cells are small, and so is what the warning is about: the published formula is compared, not the truth
pytestmark = pytest.mark.filterwarnings("ignore:the model's receptive radius")


def command(*arguments: str | Path, folder: Path | None = None) -> str:
    """Run Python in a fresh process, which inherits this source tree."""
    done = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of imitated checkpoints, made by another process in which there are modules `les.*`."""
    folder = tmp_path_factory.mktemp("checkpoints")
    command(HERE.parent / "support" / "imitated_les.py", folder)
    return folder


def trusted(path: Path) -> Model:
    with pytest.warns(UserWarning, match=r"is a pickle.*runs the code"):
        return load(path, trust=True)


@pytest.fixture(scope="module")
def published(checkpoints: Path) -> Model:
    return trusted(checkpoints / "published.model")


def compared(model: Model, expected: dict[str, Tensor]) -> None:
    found = model.compute(structures(), list(expected), as_tensors=True)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_checkpoint_gives_what_its_numbers_say(checkpoints: Path, variant: str) -> None:
    """Energies, forces, charges and Born charges by the equations, in cells of all kinds and for a molecule."""
    model = trusted(checkpoints / f"{variant}.model")
    expected = torch.load(checkpoints / f"{variant}.pt")
    compared(model, expected)
    long = model.compute(structures(), ["long_range_energy"])["long_range_energy"]
    assert np.abs(long).min() > 0.01
    # unless another number of harmonics, or ε, is asked for
    better = model.compute(structures()[:1], ["born_charges"], harmonics=6, mean="detached")["born_charges"]
    assert np.abs(better - expected["born_charges"][:6].numpy()).max() > 1e-3
    vacuum = model.compute(structures()[3:], ["charges"], epsilon_infinity=1.0)["charges"]
    assert vacuum * VARIANTS[variant].get("epsilon", 1.0) ** 0.5 == pytest.approx(expected["charges"][18:].numpy())


def test_nothing_of_it_stays_behind(checkpoints: Path, published: Model) -> None:
    import mace.modules.models as models

    assert not hasattr(models, "MACELES")
    assert "les.module.ewald" not in sys.modules or sys.modules["les"].__name__ == "farfield.compat.les"
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ


def test_a_fresh_process_converts_it(checkpoints: Path, tmp_path: Path) -> None:
    old, new = checkpoints / "published.model", tmp_path / "published.ff"
    said = command("-m", "farfield.cli", "convert", old, new, "--trust")
    assert "long-range" in said
    assert str(new) in said
    compared(load(new), torch.load(checkpoints / "published.pt"))


def test_without_trust_it_is_refused(checkpoints: Path, tmp_path: Path) -> None:
    old = checkpoints / "published.model"
    with pytest.raises(ModelFileError, match=r"pickle.*any code.*trust"):
        load(old)
    with pytest.raises(ModelFileError, match="trust"):
        Calculator(old)
    done = CliRunner().invoke(app, ["convert", str(old), str(tmp_path / "new.ff")])
    assert done.exit_code == 2
    assert "--trust" in done.stderr
    assert not (tmp_path / "new.ff").exists()


def test_all_outputs_and_ase(published: Model) -> None:
    found = published.compute(structures(), PROPERTIES)
    assert set(PROPERTIES) <= set(found)
    assert not np.isnan(found["stress"][:3]).any()
    for number, atoms in enumerate(structures()):
        atoms.calc = Calculator(published)
        assert atoms.get_potential_energy() == pytest.approx(found["energy"][number], abs=1e-9)
    # ½ Σ q φ is the energy, self energies included as the checkpoint says
    work = 0.5 * (found["latent_charges"] * found["potential"]).reshape(4, 6).sum(1)
    assert work == pytest.approx(found["long_range_energy"], abs=1e-9)


def test_derivatives_and_symmetries_hold_with_any_periodicity(published: Model) -> None:
    potential = published.potential
    batch = joined(mixed(), potential.cutoff)
    found = potential.predict(batch, stress=True)
    generator = torch.Generator().manual_seed(0)
    move = torch.randn(batch.positions.shape, generator=generator, dtype=torch.float64)
    slope = HostLaws.slope_of(
        lambda step: potential(batch.replace(positions=batch.positions + step * move)).energy, 1e-3
    )
    torch.testing.assert_close(-batch.sum_over_atoms(found.forces * move).sum(1), slope, rtol=1e-6, atol=1e-6)
    strain = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    strain = strain + strain.T

    def energy(step: float) -> Tensor:
        deform = torch.eye(3, dtype=torch.float64) + step * strain
        return potential(batch.replace(positions=batch.positions @ deform, cell=batch.cell @ deform)).energy

    full = batch.pbc.all(1)
    volume = torch.linalg.det(batch.cell).abs()
    work = (found.stress * strain).sum((1, 2))[full] * volume[full]
    torch.testing.assert_close(work, HostLaws.slope_of(energy)[full], rtol=1e-6, atol=1e-6)
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    turned = potential.predict(batch.replace(positions=batch.positions @ turn.T, cell=batch.cell @ turn.T))
    torch.testing.assert_close(turned.energy, found.energy)
    # what the sums over slabs and wires leave out turns a little
    partly = (batch.pbc.any(1) & ~full)[batch.system]
    turned_back = turned.forces @ turn
    torch.testing.assert_close(turned_back[~partly], found.forces[~partly])
    torch.testing.assert_close(turned_back[partly], found.forces[partly], rtol=1e-4, atol=1e-5)
    alone = [potential.predict(joined([one], potential.cutoff)) for one in mixed()]
    torch.testing.assert_close(found.energy, torch.cat([one.energy for one in alone]))
    single = published.potential.__class__.from_config(potential.config()).float()
    single.load_state_dict(potential.state_dict())
    near = single.predict(batch.to(dtype=torch.float32))
    torch.testing.assert_close(near.energy, found.energy, rtol=1e-4, atol=1e-4)


def test_a_step_of_training_reaches_the_charges(published: Model) -> None:
    potential = published.potential
    found = potential.predict(joined(mixed()[:2], potential.cutoff), create_graph=True)
    wanted = list(potential.backbone.les_readouts.parameters())
    slopes = torch.autograd.grad(found.forces.square().sum(), wanted, allow_unused=True, materialize_grads=True)
    assert any(bool(slope.abs().max() > 1e-6) for slope in slopes)


def broken(checkpoints: Path, change: Any) -> Path:
    model = load_module(checkpoints / "newer.model")
    change(model)
    torch.save(model, checkpoints / "broken.model")
    return checkpoints / "broken.model"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda model: model.les_readouts.__delitem__(1), "readouts"),
        (lambda model: model.les.fixed_charges.update({1: 0.3}), r"fixed charges.*\[6, 8\]"),
        (lambda model: setattr(model, "__class__", torch.nn.Module), "no adapter"),
    ],
    ids=["readouts", "fixed charges", "class"],
)
@pytest.mark.filterwarnings("ignore:.*is a pickle")
def test_what_cannot_be_rebuilt_is_refused(checkpoints: Path, change: Any, says: str) -> None:
    with pytest.raises(ModelFileError, match=says):
        load(broken(checkpoints, change), trust=True)


@pytest.mark.filterwarnings("ignore:.*is a pickle")
def test_files_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    torch.save({"model": 1}, tmp_path / "state.pt")
    with pytest.raises(ModelFileError, match="holds a dict"):
        load(tmp_path / "state.pt", trust=True)
    (tmp_path / "cut.model").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ModelFileError, match="cannot be unpickled"):
        load(tmp_path / "cut.model", trust=True)


# ---- the host's own training -----------------------------------------------------------------------------------------


def clusters(path: Path, count: int, seed: int) -> None:
    """Distorted pairs of water molecules, labelled by a cheap potential."""
    random = np.random.default_rng(seed)
    water = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
    frames = []
    for _ in range(count):
        positions = np.concatenate([water, water + [0.0, 0.0, 2.6]]) + random.normal(0, 0.05, (6, 3))
        atoms = Atoms("OHHOHH", positions)
        atoms.calc = EMT()
        made = Atoms(atoms.numbers, positions)
        made.info["REF_energy"], made.arrays["REF_forces"] = atoms.get_potential_energy(), atoms.get_forces()
        frames.append(made)
    write(path, frames, format="extxyz")


@pytest.mark.slow
def test_mace_run_train_trains_with_the_drop_in(tmp_path: Path) -> None:
    """The host's own command, a few epochs; what it writes loads with its long range, and gives mace's energies."""
    clusters(tmp_path / "train.xyz", 8, 0)
    clusters(tmp_path / "valid.xyz", 4, 1)
    (tmp_path / "les.yaml").write_text("truncation: published\nsigma: 0.9\nuse_atomwise: false\n")
    options = (
        "--model MACELES --name tiny --train_file train.xyz --valid_file valid.xyz --les_arguments les.yaml "
        "--energy_key REF_energy --forces_key REF_forces --E0s average --r_max 3.0 --hidden_irreps 4x0e --max_ell 1 "
        "--correlation 1 --num_interactions 1 --num_radial_basis 4 --batch_size 4 --valid_batch_size 4 "
        "--max_num_epochs 3 --device cpu --default_dtype float64 --seed 1"
    )
    command("-m", "farfield.compat.les", "mace_run_train", *options.split(), folder=tmp_path)
    log = (tmp_path / "results" / "tiny_run-1_train.txt").read_text().splitlines()
    losses = [entry["loss"] for entry in map(json.loads, log) if entry["mode"] == "eval"]
    assert losses[-1] < 0.9 * losses[0]
    model = trusted(tmp_path / "tiny.model")
    assert model.potential.long_range.coulomb.config() | {"accuracy": 0} == {
        "smearing": 0.9, "dl": 2.0, "norm_factor": pytest.approx(90.47564), "self_interaction": False, "accuracy": 0,
    }  # fmt: skip
    batch = joined([one for one in mixed()[:2]], 3.0)
    batch = batch.replace(numbers=torch.where(batch.numbers == 6, 8, batch.numbers))
    own = load_module(tmp_path / "tiny.model")
    with importing():
        data = inputs_of(batch)
        expected = own({**data, "node_attrs": data["node_attrs"][:, [0, 2]]}, compute_force=False)["energy"]
    energies = model.compute(batch, ["energy", "long_range_energy"], as_tensors=True)
    torch.testing.assert_close(energies["energy"], expected, rtol=1e-9, atol=1e-9)
    assert energies["long_range_energy"].abs().min() > 1e-6


def test_a_maceles_is_not_augmented_again(checkpoints: Path) -> None:
    model = load_module(checkpoints / "newer.model")
    with pytest.raises(ValueError, match=r"farfield\.load"):
        augment(model, dipoles=True)
