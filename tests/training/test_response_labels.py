"""Dipoles, charges, polarizabilities and Born charges as labels: their laws in the loss, and trainings on them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from small_training import clusters, loss_in, slopes_of, small_config

from farfield.card import ModelCard
from farfield.datasets.dataset import Sample, collate
from farfield.model import Model
from farfield.observables.born import born_charges
from farfield.training import train
from farfield.training.checkpoint import load_checkpoint, save_checkpoint
from farfield.training.config import INTERACTION_PARTS, LONG_RANGE_PARTS, RESPONSE_PARTS, ConfigError
from farfield.training.data import load_training_data
from farfield.training.loop import Trainer
from farfield.training.losses import loss_of
from farfield.training.reading import parse_config

COLUMNS = {"dipole": "mu", "charges": "q", "polarizability": "alpha", "born_charges": "z"}
SHAPES = {"dipole": (3,), "charges": (-1,), "polarizability": (3, 3), "born_charges": (-1, 3, 3)}


def labelled(n: int = 6, *, without: dict[int, tuple[str, ...]] | None = None) -> list[Atoms]:
    """Clusters with random labels of every kind, but for those that some frames are ``without``."""
    rng = np.random.default_rng(1)
    frames = clusters(n)
    for index, atoms in enumerate(frames):
        for name, column in COLUMNS.items():
            shape = tuple(len(atoms) if size == -1 else size for size in SHAPES[name])
            value = 0.3 * rng.normal(size=shape)
            if name in (without or {}).get(index, ()):
                continue
            if name in ("charges", "born_charges"):
                atoms.arrays[column] = value.reshape(len(atoms), -1).squeeze()
            else:
                atoms.info[column] = value.ravel()
    return frames


def response_config(folder: Path, frames: list[Atoms], weights: dict[str, float], **changes: Any) -> dict[str, Any]:
    """Configuration of a training with response on these frames."""
    path = folder / "data.extxyz"
    write(path, frames)
    config = small_config(path, folder, loss={"stages": [weights]}, precision="float64", **changes)
    config["data"] = {"train": str(path), "columns": {name: [column] for name, column in COLUMNS.items()}}
    config["model"]["long_range"] = {"n_hidden": [6], "induced_charges": True, "induced_dipoles": True}
    return config


def trainer_of(config: dict[str, Any], sign: int = 1) -> Trainer:
    trainer = Trainer(parse_config(config), quiet=True)
    trainer.module.gauge_sign = sign
    return trainer


def batch_of(trainer: Trainer) -> Sample:
    return collate(list(trainer.data.train))


def value_in(trainer: Trainer, sample: Sample) -> float:
    return loss_in(trainer, sample).item()


@pytest.mark.parametrize("part", RESPONSE_PARTS)
@pytest.mark.parametrize("response", ["one-shot", "scf"])
def test_gradients_of_the_loss_are_those_of_finite_differences(tmp_path: Path, part: str, response: str) -> None:
    config = response_config(tmp_path, labelled(3), {"energy": 0, "forces": 0, part: 1})
    config["model"]["long_range"]["response"] = response
    trainer = trainer_of(config)
    sample = batch_of(trainer)
    slope, difference = slopes_of(trainer, sample)
    assert abs(slope) > 1e-6
    assert slope == pytest.approx(difference, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_compared_is_what_the_model_says(tmp_path: Path, sign: int) -> None:
    """With predictions of `Model` as labels the loss vanishes, whatever the sign of its gauge; without forces too."""
    config = response_config(tmp_path, labelled(3), {"energy": 0, "forces": 0, **dict.fromkeys(RESPONSE_PARTS, 1.0)})
    trainer = trainer_of(config, sign)
    sample = batch_of(trainer)
    model = Model(trainer.potential, ModelCard(gauge_sign=sign))
    said = model.compute(sample.batch, RESPONSE_PARTS, as_tensors=True)
    assert all(float(said[part].abs().max()) > 1e-3 for part in RESPONSE_PARTS)
    assert value_in(trainer, sample) > 1e-3
    assert value_in(trainer, Sample(sample.batch, {**sample.labels, **said})) < 1e-20
    charges = Sample(sample.batch, {**sample.labels, **said, "charges": -said["charges"]})
    assert value_in(trainer, charges) == pytest.approx(4 * float(said["charges"].square().mean()))


def test_labels_that_are_not_known_contribute_nothing(tmp_path: Path) -> None:
    """Value and gradient are those of the frames that have the label."""
    frames = labelled(4, without={1: RESPONSE_PARTS, 2: RESPONSE_PARTS})
    trainer = trainer_of(
        response_config(tmp_path, frames, {"energy": 0, "forces": 0, **dict.fromkeys(RESPONSE_PARTS, 1.0)})
    )
    parameters = [p for p in trainer.potential.parameters() if p.requires_grad]
    every = list(trainer.data.train)
    found = []
    for chosen in (every, [every[0], every[3]]):
        loss = loss_in(trainer, collate(chosen))
        found.append([loss, *torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)])
    for mixed, alone in zip(*found, strict=True):
        torch.testing.assert_close(mixed, alone)
    unlabelled = loss_in(trainer, collate(every[1:3]))
    assert unlabelled.item() == 0.0
    gradients = torch.autograd.grad(unlabelled, parameters, allow_unused=True, materialize_grads=True)
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_born_charges_without_weight_are_not_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost several times the rest: a stage before theirs takes steps without them, to the same loss."""
    config = response_config(tmp_path, labelled(2), {"energy": 1, "forces": 1})
    config["loss"]["stages"] = [
        {"energy": 1, "forces": 1},
        {"from_epoch": 3, "energy": 1, "forces": 1, "born_charges": 1},
    ]
    config["optimizer"]["decay"] = {"kind": "cosine"}
    trainer = trainer_of(config)
    sample, calls = batch_of(trainer), []

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return born_charges(*arguments, **options)

    monkeypatch.setattr("farfield.training.responses.born_charges", counted)
    early = trainer.module.training_step(sample)
    assert not calls
    config["optimizer"]["decay"] = {"kind": "plateau"}
    plateau = trainer_of(config)
    assert plateau.module.training_step(batch_of(plateau)) == early
    assert len(calls) == 1, "without validation a plateau is seen by these errors, the same in all stages"
    calls.clear()
    trainer.module.set_loss_epoch(3)
    late = trainer.module.training_step(sample)
    assert len(calls) == 1
    assert late > early
    errors = trainer.module.errors(trainer.potential, sample, create_graph=False)
    known = loss_of(errors, {**trainer.module.weights, "born_charges": 0.0}, trainer.module.loss_config)
    assert early.item() == pytest.approx(known.item(), rel=1e-12)


@pytest.mark.parametrize("rule", ["constraint", None])
def test_the_total_charge_is_compared_before_it_is_constrained(tmp_path: Path, rule: str | None) -> None:
    """What a constraint would mend counts in the loss, value and gradient; frames of unknown charge do not count."""
    frames = labelled(4)
    for atoms, charge in zip(frames, (0, 1, -1, 2), strict=True):
        atoms.info["charge"] = charge
    config = response_config(tmp_path, frames, {"energy": 0, "forces": 0, "total_charge": 1})
    config["data"]["total_charge"] = "charge"
    config["model"]["long_range"]["total_charge"] = rule
    trainer = trainer_of(config)
    sample, module = batch_of(trainer), trainer.potential.long_range
    module.total_charge = None
    sums = sample.batch.sum_over_atoms(trainer.potential.multipoles(sample.batch).charges)
    expected = (sums - sample.batch.total_charge).square().mean()
    parameters = list(module.charges.parameters())
    gradients = torch.autograd.grad(expected, parameters)
    module.total_charge = rule
    loss = loss_in(trainer, sample)
    torch.testing.assert_close(loss, expected.double())
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), gradients)
    some = torch.tensor([torch.nan, 1.0, -1.0, torch.nan], dtype=torch.float64)
    partly = loss_in(trainer, Sample(sample.batch, {**sample.labels, "total_charge": some}))
    torch.testing.assert_close(partly, (sums - some)[1:3].square().mean())


def test_the_total_charge_of_a_loss_has_to_be_given(tmp_path: Path) -> None:
    config = response_config(tmp_path, labelled(2), {"total_charge": 1})
    with pytest.raises(ConfigError, match=r"\['total_charge'\].*data\.total_charge"):
        load_training_data(parse_config(config))


def water(n: int = 10) -> list[Atoms]:
    """Clusters whose charges follow from their bonds, with the dipoles of these, and energies and forces of before."""
    frames = clusters(n)
    for atoms in frames:
        distances = atoms.get_all_distances()
        protons = np.array([0.3 + 0.2 * (row[row > 0.5].min() - 1.1) for row in distances])
        charges = np.where(atoms.numbers == 1, protons, 0.0)
        charges[atoms.numbers == 8] = -charges.sum() / (atoms.numbers == 8).sum()
        atoms.arrays["q"] = charges
        atoms.info["mu"] = charges @ atoms.positions
    return frames


def test_a_model_of_energies_and_forces_learns_dipoles_and_charges(tmp_path: Path) -> None:
    """Fine-tuning goes on with the sign that the model had, and the labels fix it from then on."""
    path = tmp_path / "water.extxyz"
    write(path, water())
    config = small_config(path, tmp_path, name="first", epochs=2, loss={"stages": [{"energy": 1, "forces": 10}]})
    config["data"]["columns"] = {"dipole": ["mu"], "charges": ["q"]}
    first = train(config, quiet=True)
    assert first.model is not None
    model = Model.from_file(first.model)
    model.card = model.card.replace(gauge_sign=-1)
    model.save(tmp_path / "turned.ff")
    config |= {"name": "second", "epochs": 15, "initial": str(tmp_path / "turned.ff")}
    config["loss"] = {"stages": [{"energy": 1, "forces": 1, "dipole": 10, "charges": 10}]}
    config["optimizer"] = {"learning_rate": 0.03, "warmup_steps": 3, "decay": {"kind": "none"}}
    second = train(config, quiet=True)
    with (tmp_path / "second" / "metrics.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert "train/born_charges_rmse" not in rows[0]
    for part in ("dipole", "charges"):
        assert float(rows[-1][f"validation/{part}_rmse"]) < 0.5 * float(rows[0][f"validation/{part}_rmse"])
    assert second.model is not None
    tuned = Model.from_file(second.model)
    assert tuned.card.gauge_sign == -1
    assert tuned.card.gauge == "fixed by the labels trained on: dipole, charges"
    assert "dipole_rmse (me·Å)" in tuned.card.metrics["validation"]
    said = tuned.compute(water(), ["dipole"])["dipole"]
    known = np.stack([atoms.info["mu"] for atoms in water()])
    rmse = 1e3 * float(np.sqrt(np.mean((said - known) ** 2)))
    parts = [second.metrics[part]["dipole_rmse"] for part in ("train", "validation")]
    assert min(parts) <= rmse <= max(parts)
    resumed = train({**config, "epochs": 16}, resume=True, quiet=True)
    assert resumed.model is not None
    assert Model.from_file(resumed.model).card.gauge_sign == -1


def test_a_checkpoint_from_before_goes_on(tmp_path: Path) -> None:
    """Without the new weights in its configuration, their rows in its sums and the sign of the charges."""
    path = tmp_path / "data.extxyz"
    write(path, clusters(6))
    config = small_config(path, tmp_path, epochs=1)
    config["data"]["split"] = {"count": 2}
    train(config, quiet=True)
    checkpoint = tmp_path / "small" / "checkpoints" / "last.ckpt"
    state = load_checkpoint(checkpoint)
    state = {key: value for key, value in state.items() if key not in ("format", "gauge_sign")}
    state["sums"] = state["sums"][:3]
    for stage in (*state["config"]["loss"]["stages"], state["config"]["loss"]["delta"]):
        for part in (*LONG_RANGE_PARTS, *INTERACTION_PARTS):
            del stage[part]
    save_checkpoint(checkpoint, state)
    assert train({**config, "epochs": 2}, resume=True, quiet=True).epochs == 2


@pytest.mark.parametrize("part", LONG_RANGE_PARTS)
def test_models_that_cannot_learn_a_label_are_refused(part: str) -> None:
    config = small_config(Path("data.extxyz"), Path("runs"), loss={"stages": [{}, {"from_epoch": 2, part: 1}]})
    config["model"]["long_range"] = None
    with pytest.raises(ConfigError, match=rf"loss\.stages\.1\.{part}.*model\.long_range.*null"):
        parse_config(config)


def test_polarizabilities_need_a_model_with_response() -> None:
    config = small_config(Path("data.extxyz"), Path("runs"), loss={"stages": [{"polarizability": 1}]})
    with pytest.raises(ConfigError, match=r"loss\.stages\.0\.polarizability.*induced_dipoles"):
        parse_config(config)


def test_labels_of_periodic_systems_count_where_they_mean_something(tmp_path: Path) -> None:
    frames = labelled(4)
    for atoms in frames[:2]:
        atoms.set_cell(np.diag([7.0, 7.5, 8.0]))
        atoms.pbc = True
    frames[1].pbc = (True, True, False)
    for atoms in frames:  # extxyz would otherwise drop the results of frames whose cell has changed
        atoms.calc = SinglePointCalculator(atoms, **atoms.calc.results)
    config = response_config(tmp_path, frames, dict.fromkeys(RESPONSE_PARTS, 1.0))

    def known(part: str) -> list[bool]:
        data = load_training_data(parse_config(config))
        return [not bool(sample.labels[part].isnan().any()) for sample in data.train]

    for part in RESPONSE_PARTS:
        assert known(part) == [False, False, True, True]
    assert any("no dipole" in line and "quanta" in line for line in load_training_data(parse_config(config)).gaps())
    config["model"]["epsilon_infinity"] = 2.0
    assert known("born_charges") == known("charges") == [True, False, True, True]
    assert known("dipole") == known("polarizability") == [False, False, True, True]

    write(tmp_path / "data.extxyz", frames[:1])
    with pytest.raises(ConfigError, match=r"\['dipole', 'polarizability'\].*a dipole counts.*open along all axes"):
        load_training_data(parse_config(config))


def test_charges_of_bulk_are_scaled_as_in_the_model(tmp_path: Path) -> None:
    """With ε∞ known, charges and Born charges of a crystal are compared with what `Model` says of it."""
    frames = labelled(2)
    for atoms in frames:
        atoms.set_cell(np.diag([8.0, 8.5, 9.0]))
        atoms.pbc = True
        atoms.calc = SinglePointCalculator(atoms, **atoms.calc.results)
    parts = ("charges", "born_charges")
    config = response_config(tmp_path, frames, {"energy": 0, "forces": 0, **dict.fromkeys(parts, 1.0)})
    config["model"]["epsilon_infinity"] = 4.0
    trainer = trainer_of(config, -1)
    sample = batch_of(trainer)
    said = Model(trainer.potential, ModelCard(gauge_sign=-1, epsilon_infinity=4.0)).compute(
        sample.batch, parts, as_tensors=True
    )
    assert value_in(trainer, sample) > 1e-3
    assert value_in(trainer, Sample(sample.batch, {**sample.labels, **said})) < 1e-20
