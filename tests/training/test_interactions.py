"""What fragments do to each other as labels: their laws in the loss, and a training on nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.units
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from small_training import clusters, fit, loss_in, slopes_of, small_config

from farfield.atoms.batch import concatenate
from farfield.atoms.structures import from_ase
from farfield.card import ModelCard
from farfield.datasets.dataset import collate, label_structures
from farfield.datasets.quantities import Units
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.model import Model, load
from farfield.training import train
from farfield.training.config import INTERACTION_PARTS
from farfield.training.data import load_training_data
from farfield.training.loop import Trainer
from farfield.training.reading import parse_config

WEIGHTS = {"energy": 0, "forces": 0, **dict.fromkeys(INTERACTION_PARTS, 1.0)}


def pairs(n: int = 4, *, distance: float = 2.4) -> list[Atoms]:
    """Two clusters each, atoms of both in turn, with random labels; charged by one, as is the second cluster."""
    random = np.random.default_rng(0)
    frames = []
    for index, (one, other) in enumerate(zip(clusters(n), clusters(n, seed=1), strict=True)):
        both = one.copy()
        both += Atoms(other.numbers, other.positions + [distance, 1.0, 0.5 * index])
        order = np.argsort(np.r_[np.arange(len(one)), np.arange(len(other)) + 0.5], kind="stable")
        both.arrays["fragment"] = np.repeat([0, 1], [len(one), len(other)])
        both = both[order]
        both.info = {
            "charge": 1,
            "fragment_charges": [0, 1],
            "interaction_energy": 0.3 * random.normal(),
            "energy": 0.0,
        }
        both.arrays["interaction_forces"] = 0.3 * random.normal(size=(len(both), 3))
        frames.append(both)
    return frames


def trainer_of(
    folder: Path, frames: list[Atoms], *, sign: int = 1, weights: dict[str, float] = WEIGHTS, **long_range: Any
) -> Trainer:
    path = folder / "data.extxyz"
    write(path, frames)
    config = small_config(path, folder, loss={"stages": [weights]}, precision="float64")
    config["data"] = {"train": str(path), "total_charge": "charge"}
    config["model"]["long_range"] = {"n_hidden": [6], "total_charge": "constraint", **long_range}
    trainer = Trainer(parse_config(config), quiet=True)
    trainer.module.gauge_sign = sign
    return trainer


@pytest.mark.parametrize("sign", [1, -1])
def test_the_whole_is_compared_less_its_fragments(tmp_path: Path, sign: int) -> None:
    """With differences between predictions of `Model` as labels the loss vanishes; frames without any may be between.

    The fragments are nearer than the cutoff: the short range counts, too.
    """
    plain = clusters(1)[0]
    plain.info["charge"] = 0
    frames = [pairs(2)[0], plain, pairs(2)[1]]
    trainer = trainer_of(tmp_path, frames, sign=sign)
    model = Model(trainer.potential, ModelCard(gauge_sign=sign))

    def said(atoms: Atoms, charge: float) -> tuple[float, np.ndarray]:
        found = model.compute(atoms, ["energy", "forces"], total_charge=charge)
        return float(np.ravel(found["energy"])[0]), np.array(found["forces"])

    for atoms in (frames[0], frames[2]):
        energy, forces = said(atoms, 1.0)
        assert np.abs(forces).max() > 1e-2
        for number in (0, 1):
            mine = atoms.arrays["fragment"] == number
            apart = said(atoms[mine], float(number))
            energy -= apart[0]
            forces[mine] -= apart[1]
        assert np.abs(forces).max() > 1e-4
        atoms.info["interaction_energy"], atoms.arrays["interaction_forces"] = energy, forces
    sample = collate(list(trainer.data.train))
    assert loss_in(trainer, sample).item() > 1e-3
    exact = trainer_of(tmp_path, frames, sign=sign)
    exact.potential.load_state_dict(trainer.potential.state_dict())
    sample = collate(list(exact.data.train))
    assert sample.fragments is not None
    assert sample.fragments.systems.tolist() == [0, 0, 2, 2]
    assert loss_in(exact, sample).item() < 1e-16  # the files have eight digits


@pytest.mark.parametrize("part", INTERACTION_PARTS)
def test_gradients_are_those_of_finite_differences(tmp_path: Path, part: str) -> None:
    """Of one part alone, without any total energies or forces."""
    weights = {"energy": 0, "forces": 0, part: 1}
    trainer = trainer_of(tmp_path, pairs(2), weights=weights, induced_dipoles=True)
    sample = collate(list(trainer.data.train))
    slope, difference = slopes_of(trainer, sample)
    assert abs(slope) > 1e-6
    assert slope == pytest.approx(difference, rel=1e-4, abs=1e-7)


def test_frames_without_fragments_count_for_nothing(tmp_path: Path) -> None:
    plain = clusters(1)[0]
    plain.info["charge"] = 0
    trainer = trainer_of(tmp_path, [*pairs(2), plain])
    every = list(trainer.data.train)
    assert loss_in(trainer, collate(every)).item() == pytest.approx(loss_in(trainer, collate(every[:2])).item())
    alone = loss_in(trainer, collate(every[2:]))
    assert alone.item() == 0.0
    parameters = [p for p in trainer.potential.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(alone, parameters, allow_unused=True, materialize_grads=True)
    assert all(bool((gradient == 0).all()) for gradient in gradients)


def test_fragments_are_left_out_where_nothing_is_trained_on_them(tmp_path: Path) -> None:
    """Nor are labels of that name read that some other file has, without fragments."""
    frames = pairs(2)
    for atoms in frames:
        atoms.info["energy"] = 0.0
    del frames[0].arrays["fragment"]
    write(tmp_path / "data.extxyz", frames)
    config = small_config(tmp_path / "data.extxyz", tmp_path, loss={"stages": [{"energy": 1, "forces": 0}]})
    config["data"] = {"train": str(tmp_path / "data.extxyz")}
    assert all(sample.fragments is None for sample in load_training_data(parse_config(config)).train)


def test_sets_to_validate_and_to_test_on_need_no_fragments(tmp_path: Path) -> None:
    """A whole training: on pairs and plain clusters, judged by plain clusters; logs and card have the errors."""
    plain = clusters(6)
    for atoms in plain:
        atoms.info["charge"] = 0
    write(tmp_path / "train.extxyz", [*plain[:4], *pairs(2)])
    write(tmp_path / "plain.extxyz", plain[4:])
    config = small_config(tmp_path / "train.extxyz", tmp_path, epochs=2, loss={"stages": [{**WEIGHTS, "forces": 1}]})
    other = str(tmp_path / "plain.extxyz")
    config["data"] = {
        "train": str(tmp_path / "train.extxyz"), "validation": other, "test": other, "total_charge": "charge"
    }  # fmt: skip
    result = train(config, quiet=True)
    assert result.model is not None
    metrics = load(result.model).card.metrics
    assert metrics["train"]["interaction_forces_rmse (meV/Å)"] > 0
    assert not any("interaction" in name for name in metrics["validation"])


def test_labels_are_read_in_their_units_and_kept_in_float64() -> None:
    units = Units(interaction_energy="meV", interaction_forces="kcal/mol/Å")
    dataset = label_structures(pairs(3), dtype=torch.float32, units=units, fragments=True).subset([2, 0])
    sample = collate(list(dataset.with_neighbors(3.0).with_neighbors(2.0)))
    given = [pairs(3)[i] for i in (2, 0)]
    energies = torch.tensor([1e-3 * atoms.info["interaction_energy"] for atoms in given], dtype=torch.float64)
    torch.testing.assert_close(sample.labels["interaction_energy"], energies)
    forces = np.concatenate([atoms.arrays["interaction_forces"] for atoms in given]) * ase.units.kcal / ase.units.mol
    torch.testing.assert_close(sample.labels["interaction_forces"], torch.tensor(forces, dtype=torch.float32))
    assert sample.fragments is not None
    assert sample.fragments.batch.neighbors.cutoff == 2.0
    torch.testing.assert_close(sample.fragments.batch.positions, sample.batch.positions[sample.fragments.atoms])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms.arrays.pop("fragment"), "no array 'fragment'"),
        (lambda atoms: atoms.arrays.update(fragment=np.zeros(len(atoms))), "two or more"),
        (lambda atoms: atoms.arrays.update(fragment=2 * atoms.arrays["fragment"]), "without a gap"),
        (lambda atoms: atoms.info.pop("fragment_charges"), r"fragment_charges.\] is \(\)"),
        (lambda atoms: atoms.info.update(fragment_charges=[1, 1]), "together 1"),
        (lambda atoms: atoms.info.update(fragment_charges=[np.nan, 1]), "together 1"),
        (lambda atoms: atoms.info.update(fragment_charges="0 one"), "together 1"),
        (lambda atoms: atoms.arrays.update(fragment=np.zeros((len(atoms), 2))), "must have the shape"),
    ],
)
def test_fragments_that_are_none_are_refused(change: Any, message: str) -> None:
    frames = pairs(2)
    change(frames[1])
    with pytest.raises(ValueError, match=message) as error:
        label_structures(frames, total_charge="charge", fragments=True, name="my file")
    assert "my file, frame 1" in str(error.value)


def test_charges_of_fragments_are_asked_for_only_where_totals_are() -> None:
    frames = pairs(1)
    del frames[0].info["fragment_charges"]
    fragments = label_structures(frames, fragments=True)[0].fragments
    assert fragments is not None
    assert fragments.batch.total_charge is None
    counts = np.bincount(frames[0].arrays["fragment"])
    assert fragments.batch.counts.tolist() == counts.tolist()
    assert fragments.batch.numbers.tolist() == frames[0].numbers[fragments.atoms].tolist()


def test_charges_are_learned_from_interactions_alone(tmp_path: Path) -> None:
    """Two molecules each, too far apart for the short range: what one does to the other says what charges it has."""
    random = np.random.default_rng(3)
    charges = {8: -0.6, 1: 0.3}
    frames = []
    for _ in range(24):
        water = np.array([[0.0, 0.0, 0.0], [0.8, 0.6, 0.0], [-0.8, 0.6, 0.0]])
        turned = [water @ np.linalg.qr(random.normal(size=(3, 3)))[0] for _ in range(2)]
        atoms = Atoms("OHHOHH", np.concatenate([turned[0], turned[1] + [0.0, 0.0, random.uniform(4.6, 6.0)]]))
        q = torch.tensor([charges[z] for z in atoms.numbers], dtype=torch.float64)
        parts = concatenate([from_ase(atoms), from_ase(atoms[:3]), from_ase(atoms[3:])])
        parts = parts.replace(positions=parts.positions.requires_grad_())
        energies = Coulomb(1.0)(parts, Multipoles(torch.cat([q, q]))).energy
        energy = energies[0] - energies[1] - energies[2]
        (gradient,) = torch.autograd.grad(energy, parts.positions)
        forces = -(gradient[:6] + gradient[6:]).numpy()
        atoms.arrays["fragment"] = np.repeat([0, 1], 3)
        atoms.arrays["interaction_forces"] = forces
        atoms.info = {"interaction_energy": energy.item(), "charge": 0, "fragment_charges": [0, 0]}
        frames.append(atoms)
    trainer = trainer_of(tmp_path, frames)
    trainer.module.weights = {**trainer.module.weights, "interaction_forces": 100.0}
    sample = collate(list(trainer.data.train))
    first = loss_in(trainer, sample).item()
    assert fit(trainer, sample, 120) < 0.02 * first
    learned = trainer.potential.multipoles(sample.batch).charges.detach()
    true = torch.tensor([charges[int(z)] for z in sample.batch.numbers], dtype=torch.float64)
    sign = torch.sign(learned @ true)
    assert float((sign * learned - true).abs().max()) < 0.05
