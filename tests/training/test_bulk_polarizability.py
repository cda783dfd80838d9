"""Polarizabilities of three-dimensionally periodic systems as labels: what they mean, and their laws in the loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from small_training import clusters, fit, loss_in, slopes_of, small_config

from farfield.card import ModelCard
from farfield.datasets.dataset import Sample, collate
from farfield.evaluation.evaluate import evaluate
from farfield.model import Model
from farfield.potentials.long_range import LongRange
from farfield.training import train
from farfield.training.config import ConfigError
from farfield.training.data import load_training_data
from farfield.training.loop import Trainer
from farfield.training.reading import parse_config

ALONE = {"energy": 0, "forces": 0, "polarizability": 1}
CELL = np.array([[6.3, 0.3, 0.0], [-0.2, 6.6, 0.4], [0.1, 0.0, 6.9]])


def frames(*pbc: bool | tuple[bool, bool, bool]) -> list[Atoms]:
    """Clusters with these periodicities in triclinic cells, and random dielectric tensors near 1.25."""
    rng = np.random.default_rng(4)
    found = clusters(len(pbc))
    for atoms, periodic in zip(found, pbc, strict=True):
        results = atoms.calc.results
        atoms.set_cell(CELL)
        atoms.pbc = periodic
        atoms.calc = SinglePointCalculator(atoms, **results)
        noise = 0.02 * rng.normal(size=(3, 3))
        epsilon = 1.25 * np.eye(3) + noise + noise.T
        atoms.info["polarizability"] = (atoms.get_volume() / (4 * math.pi) * (epsilon - np.eye(3))).ravel()
    return found


def config_of(folder: Path, structures: list[Atoms], weights: dict[str, float], **far: Any) -> dict[str, Any]:
    path = folder / "data.extxyz"
    write(path, structures)
    config = small_config(path, folder, loss={"stages": [weights]}, precision="float64")
    config["data"] = {"train": str(path)}
    config["model"]["long_range"] = {
        "n_hidden": [6], "induced_dipoles": True, "anisotropic": True, "response": "scf",
        "polarizability_scale": 0.1, **far,
    }  # fmt: skip
    config["model"]["backbone"]["n_vectors"] = 2
    config["model"]["epsilon_infinity"] = "explicit"
    return config


def trainer_of(config: dict[str, Any]) -> tuple[Trainer, Sample]:
    trainer = Trainer(parse_config(config), quiet=True)
    trainer.potential.long_range.linear_response.tolerance = 1e-12
    return trainer, collate(list(trainer.data.train))


def model_of(trainer: Trainer, **card: Any) -> Model:
    return Model(trainer.potential, ModelCard(epsilon_infinity="explicit", **card))


def test_what_is_compared_is_what_the_model_says(tmp_path: Path) -> None:
    """With the model's own polarizabilities and charges as labels the loss vanishes, open and bulk mixed."""
    structures = frames(True, False)
    parts = ("polarizability", "charges")
    for atoms in structures:
        atoms.arrays["mbi_charges"] = np.ones(len(atoms))
    config = config_of(tmp_path, structures, {"energy": 0, "forces": 0, **dict.fromkeys(parts, 1.0)})
    config["model"]["long_range"]["softness_scale"] = 0.02
    config["model"]["long_range"]["induced_charges"] = True
    trainer, sample = trainer_of(config)
    trainer.module.gauge_sign = -1
    said = model_of(trainer, gauge_sign=-1).compute(sample.batch, parts, as_tensors=True)
    assert said["screening"] == ["explicit", "vacuum"]
    assert all(float(said[part].abs().max()) > 1e-2 for part in parts)
    assert loss_in(trainer, sample).item() > 1e-3
    own = Sample(sample.batch, {**sample.labels, **said})
    assert loss_in(trainer, own).item() < 1e-18
    turned = Sample(sample.batch, {**own.labels, "polarizability": said["polarizability"] + 0.1})
    assert loss_in(trainer, turned).item() == pytest.approx(0.01)


def test_gradients_of_the_loss_are_those_of_finite_differences(tmp_path: Path) -> None:
    trainer, sample = trainer_of(config_of(tmp_path, frames(True, False, True), ALONE, induced_charges=True))
    slope, difference = slopes_of(trainer, sample)
    assert abs(slope) > 1e-3
    assert slope == pytest.approx(difference, rel=1e-5)


def test_a_batch_is_its_systems_and_slabs_and_wires_do_not_count(tmp_path: Path) -> None:
    """Value and gradient; the training says how many labels are left out, and why."""
    structures = frames(True, (True, True, False), False, True, (False, True, False))
    trainer, sample = trainer_of(config_of(tmp_path, structures, ALONE))
    parameters = [p for p in trainer.potential.parameters() if p.requires_grad]

    def slope(loss: torch.Tensor) -> list[torch.Tensor]:
        return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))

    loss = loss_in(trainer, sample)
    alone = [loss_in(trainer, one) for one in trainer.data.train]
    assert [bool(one > 0) for one in alone] == [True, False, True, True, False]
    torch.testing.assert_close(loss, sum(alone) / 3)
    for together, apart in zip(slope(loss), slope(sum(alone) / 3), strict=True):
        torch.testing.assert_close(together, apart)
    lines = trainer.data.gaps()
    assert any("2 of 5 frames have no polarizability" in line and "explicit" in line for line in lines)


def test_batches_without_such_labels_solve_nothing_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, _ = trainer_of(config_of(tmp_path, frames(True, (True, True, False), True), ALONE))
    slab = trainer.data.train[1]

    def refused(*arguments: Any) -> torch.Tensor:
        raise AssertionError("solved for labels that are not there")

    monkeypatch.setattr(LongRange, "total_polarizability", refused)
    assert loss_in(trainer, slab).item() == 0.0


def test_trained_on_labels_the_response_makes_the_dielectric_tensor(tmp_path: Path) -> None:
    """The fixed point is ε_m = ε of the frame, all of it: nothing is left for an ε_e."""
    structures = frames(True)
    trainer, sample = trainer_of(config_of(tmp_path, structures, ALONE))
    trainer.potential.long_range.linear_response.tolerance = 1e-6
    before = loss_in(trainer, sample).item()
    assert fit(trainer, sample, 25) < 0.1 * before
    volume = structures[0].get_volume()
    label = np.eye(3) + 4 * math.pi * structures[0].info["polarizability"].reshape(3, 3) / volume
    said = model_of(trainer).compute(structures[0], ["polarizability", "epsilon_e"])
    assert said["epsilon_e"].tolist() == [1.0]
    np.testing.assert_allclose(np.eye(3) + 4 * math.pi * said["polarizability"][0] / volume, label, atol=0.02)


def test_a_number_would_pull_what_frames_differ_by_apart(tmp_path: Path) -> None:
    """Why labels do not count with a number for ε∞: what is reported then is ε∞ (1 − 1/ε_m), not ε_m − 1."""
    trainer, sample = trainer_of(config_of(tmp_path, frames(True), ALONE))

    def trace(epsilon: float | str) -> float:
        """ε − 1 in the mean, by the polarizability that is reported."""
        model = Model(trainer.potential, ModelCard(epsilon_infinity=epsilon))
        found = model.compute(sample.batch, ["polarizability"])["polarizability"][0]
        return 4 * math.pi * float(found.trace()) / (3 * abs(np.linalg.det(CELL)))

    own = 1.0 + trace("explicit")
    assert own > 1.1
    assert trace(1.7) == pytest.approx(1.7 * (1 - 1 / own), rel=1e-6)
    # equal to the label only where the number is ε_m itself
    assert trace(own) == pytest.approx(own - 1, rel=1e-6)


def test_bulk_needs_explicit_and_explicit_needs_self_consistency(tmp_path: Path) -> None:
    config = config_of(tmp_path, frames(True, True), ALONE)
    for epsilon in (1.6, None):
        config["model"]["epsilon_infinity"] = epsilon
        with pytest.raises(ConfigError, match=r"\['polarizability'\].*model\.epsilon_infinity: explicit, not a number"):
            load_training_data(parse_config(config))
    config["model"]["epsilon_infinity"] = "explicit"
    for wrong in ({"response": "one-shot"}, {"induced_dipoles": False, "induced_charges": True}):
        changed = {**config, "model": {**config["model"]}}
        changed["model"]["long_range"] = {**config["model"]["long_range"], **wrong}
        with pytest.raises(ConfigError, match=r"model.*'explicit'.*induced_dipoles: true.*response: scf"):
            parse_config(changed)
    for nonsense in ("all", -1.0, 0.0):
        config["model"]["epsilon_infinity"] = nonsense
        with pytest.raises(ConfigError, match=r"model\.epsilon_infinity.*must be a positive number.*'explicit'"):
            parse_config(config)


def test_a_training_says_so_in_its_card_and_is_evaluated(tmp_path: Path) -> None:
    structures = frames(True, True, False, True)
    config = config_of(tmp_path, structures, {"energy": 1, "forces": 1, "polarizability": 0.1})
    done = train({**config, "epochs": 2}, quiet=True)
    assert done.model is not None
    model = Model.from_file(done.model)
    assert model.card.epsilon_infinity == "explicit"
    entry = evaluate(model, structures).as_dict()["metrics"]["polarizability"]
    assert entry["unit"] == "Å³"
    assert 1e3 * entry["rmse"] == pytest.approx(done.metrics["train"]["polarizability_rmse"], rel=1e-4)
