"""Trainings that start from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ase.io import write
from small_training import clusters, small_config, write_clusters

from farfield.datasets.dataset import collate
from farfield.model import Model
from farfield.training import train
from farfield.training.config import ConfigError
from farfield.training.initial import start_from
from farfield.training.loop import Trainer
from farfield.training.reading import parse_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clusters(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def old(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    path = train(small_config(data, folder, epochs=2), quiet=True).model
    assert path is not None
    return path


def fresh(data: Path, output: Path, initial: Path | None, **changes: Any) -> Trainer:
    config = small_config(data, output, initial=None if initial is None else str(initial))
    config["model"] |= changes
    return Trainer(parse_config(config), quiet=True)


def test_forces_and_charges_are_those_of_the_old_model(data: Path, old: Path, tmp_path: Path) -> None:
    trainer = fresh(data, tmp_path, old)
    batch = collate(list(trainer.data.train)).batch
    before, now = Model.from_file(old).potential.predict(batch), trainer.potential.predict(batch)
    assert torch.equal(before.forces, now.forces)
    assert torch.equal(before.multipoles.charges, now.multipoles.charges)


def test_reference_energies_take_up_what_another_level_of_theory_shifts(data: Path, old: Path, tmp_path: Path) -> None:
    """Labels that are the old model's own energies plus a shift per element leave no error at all."""
    shifts = {1: -3.0, 8: 40.0}
    trainer = fresh(data, tmp_path, old)
    potential, samples = trainer.potential, list(trainer.data.train)
    model = Model.from_file(old).potential
    for sample in samples:
        shift = sum(shifts[int(z)] for z in sample.batch.numbers)
        sample.labels["energy"].copy_(model(sample.batch).energy.detach() + shift)
    start_from(potential, str(old), trainer.config.model, trainer.data.train)
    sample = collate(samples)
    torch.testing.assert_close(potential(sample.batch).energy, sample.labels["energy"], rtol=0, atol=1e-6)


def test_a_long_range_that_the_old_model_lacks_starts_fresh(data: Path, old: Path, tmp_path: Path) -> None:
    config = small_config(data, tmp_path / "short", epochs=1)
    config["model"]["long_range"] = None
    short = train(config, quiet=True).model
    assert short is not None
    trainer = fresh(data, tmp_path, short)
    loaded = Model.from_file(short).potential.backbone.state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in trainer.potential.backbone.state_dict().items())
    torch.manual_seed(3)
    unstarted = fresh(data, tmp_path / "b", None)
    mine, theirs = trainer.potential.long_range.state_dict(), unstarted.potential.long_range.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


@pytest.mark.parametrize("scale", [0.01, 0.7])
def test_another_charge_scale_changes_no_charges(data: Path, old: Path, tmp_path: Path, scale: float) -> None:
    """They are learned at another rate only: the gradient in the weights of the last layer is that of the scale."""
    far = small_config(data, tmp_path)["model"]["long_range"] | {"charge_scale": scale}
    trainer = fresh(data, tmp_path, old, long_range=far)
    batch, model = collate(list(trainer.data.train)).batch, Model.from_file(old)
    before, now = model.potential.multipoles(batch).charges, trainer.potential.multipoles(batch).charges
    torch.testing.assert_close(now, before)
    slopes = []
    for potential, charges in ((model.potential, before), (trainer.potential, now)):
        (slope,) = torch.autograd.grad(charges.square().sum(), [potential.long_range.charges.linear.weight])
        slopes.append(slope / potential.long_range.charges.scale)
    torch.testing.assert_close(slopes[0], slopes[1])


def test_a_loss_on_the_total_charge_starts_balanced(tmp_path: Path) -> None:
    """What the constraint hides of an old model goes out of its charge head, and no constrained charge changes."""
    frames = clusters(6)
    for atoms in frames:
        atoms.info["total_charge"] = 0
    ion = frames[0].copy()
    ion.info["total_charge"] = 1
    write(tmp_path / "neutral.extxyz", [*frames, ion])  # without energy and forces
    config = small_config(tmp_path / "neutral.extxyz", tmp_path, epochs=1)
    config["data"]["total_charge"] = "total_charge"
    config["model"]["long_range"] |= {"total_charge": "constraint"}
    first = train(config, quiet=True).model
    assert first is not None
    model = Model.from_file(first)
    assert model.card.total_charge == 0.0  # that of the systems whose energies are known
    model.potential.long_range.charges.move(0.3)
    model.save(tmp_path / "moved.ff")
    config |= {"initial": str(tmp_path / "moved.ff"), "loss": {"stages": [{"total_charge": 1}]}}
    trainer = Trainer(parse_config(config), quiet=True)
    batch = collate(list(trainer.data.train)).batch
    with torch.no_grad():
        before, now = model.potential(batch), trainer.potential(batch)
    assert float((before.far.excess * batch.counts).sum()) > 1.0
    assert abs(float((now.far.excess * batch.counts).sum())) < 1e-3
    torch.testing.assert_close(now.multipoles.charges, before.multipoles.charges, rtol=0, atol=1e-5)


def test_heads_that_the_old_model_lacks_start_fresh(data: Path, old: Path, tmp_path: Path) -> None:
    """Charges are those of the old model to the bit, dipoles are induced by them; an old head may not be dropped."""
    far = small_config(data, tmp_path)["model"]["long_range"] | {"induced_dipoles": True, "polarizability_scale": 0.02}
    trainer = fresh(data, tmp_path, old, long_range=far)
    batch = collate(list(trainer.data.train)).batch
    before, now = Model.from_file(old).potential(batch), trainer.potential(batch)
    assert torch.equal(before.multipoles.charges, now.multipoles.charges)
    assert torch.equal(before.short_range_energy, now.short_range_energy)
    assert bool((now.long_range_energy < before.long_range_energy).all())


def test_settings_of_heads_that_the_old_model_lacks_may_differ(data: Path, tmp_path: Path) -> None:
    """What an old file says of a softness that it has not is no matter; of the response that it has, it is."""
    config = small_config(data, tmp_path, epochs=1)
    far = config["model"]["long_range"] | {"induced_dipoles": True, "softness_scale": 0.01}
    config["model"]["long_range"] = far
    polarizable = train(config, quiet=True).model
    assert polarizable is not None
    for change in ({"softness_scale": 0.0002}, {"softness_scale": 0.0002, "induced_charges": True}):
        trainer = fresh(data, tmp_path, polarizable, long_range=far | change)
        batch = collate(list(trainer.data.train)).batch
        before, now = Model.from_file(polarizable).potential(batch), trainer.potential(batch)
        assert torch.equal(before.far.response.polarizability, now.far.response.polarizability)
    with pytest.raises(ConfigError, match=r"model\.long_range \['polarizability_scale'\]"):
        fresh(data, tmp_path, polarizable, long_range=far | {"polarizability_scale": 0.1})


def test_new_heads_may_bring_their_own_vectors(data: Path, old: Path, tmp_path: Path) -> None:
    """Permanent dipoles of a backbone that gives scalars only, from bonds; where no head reads bonds they differ."""
    bonds = {"bond_cutoff": 2.0, "bond_channels": 4}
    far = small_config(data, tmp_path)["model"]["long_range"] | bonds
    trainer = fresh(data, tmp_path, old, long_range=far | {"dipoles": True})
    batch = collate(list(trainer.data.train)).batch
    before, now = Model.from_file(old).potential(batch), trainer.potential(batch)
    assert torch.equal(before.multipoles.charges, now.multipoles.charges)
    assert bool((now.multipoles.dipoles != 0).any())
    with pytest.raises(ConfigError, match=r"model\.long_range \['bond_channels', 'bond_cutoff'\]"):
        fresh(data, tmp_path, old, long_range=far)


def test_another_backbone_or_a_missing_model_is_refused(data: Path, old: Path, tmp_path: Path) -> None:
    backbone = small_config(data, tmp_path)["model"]["backbone"] | {"n_features": 5}
    with pytest.raises(ConfigError, match=r"initial: .*model\.backbone \['n_features'\]: \{'n_features': 6\}"):
        fresh(data, tmp_path, old, backbone=backbone)
    with pytest.raises(ConfigError, match="initial: there is no model file"):
        fresh(data, tmp_path, tmp_path / "missing.ff")


def test_a_resumed_training_needs_the_old_model_no_more_and_the_card_names_it(
    data: Path, old: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.ff"
    copy.write_bytes(old.read_bytes())
    config = small_config(data, tmp_path, initial=str(copy), epochs=2)
    result = train(config, quiet=True)
    assert result.model is not None
    assert str(copy) in Model.from_file(result.model).card.training_data
    assert "clusters.extxyz" in Model.from_file(result.model).card.training_data.split(str(copy))[1]
    copy.unlink()
    resumed = train(config | {"epochs": 3}, resume=True, quiet=True)
    assert resumed.epochs == 3
