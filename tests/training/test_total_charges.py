"""Sets that mix total charges: the same places, other charges."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from small_training import clusters, fit, small_config

from farfield.atoms.structures import from_ase
from farfield.datasets.dataset import collate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.model import load
from farfield.training import train
from farfield.training.loop import Trainer
from farfield.training.reading import ConfigError, parse_config


def charge_states() -> list[Atoms]:
    """Each cluster neutral and with a charge that all atoms share, with energies and forces of its charges."""
    frames = []
    for atoms in clusters(6):
        oxygens = atoms.numbers == 8
        hydrogens = ~oxygens
        for total in (0, 1):
            charges = np.where(oxygens, -0.5 * hydrogens.sum() / oxygens.sum(), 0.5) + total / len(atoms)
            batch = from_ase(atoms)
            batch = batch.replace(positions=batch.positions.requires_grad_())
            energy = Coulomb(1.0)(batch, Multipoles(torch.tensor(charges))).energy.sum()
            (gradient,) = torch.autograd.grad(energy, batch.positions)
            frame = Atoms(atoms.numbers, atoms.positions, info={"energy": energy.item(), "total_charge": total})
            frame.arrays["forces"] = -gradient.numpy()
            frames.append(frame)
    return frames


@pytest.mark.parametrize("rule", ["feature", "constraint"])
def test_a_model_that_is_told_the_total_charge_tells_charge_states_apart(tmp_path: Path, rule: str) -> None:
    """A model that is not told makes the same of both: at best their mean, half the difference away from each."""
    frames = charge_states()
    path = tmp_path / "states.extxyz"
    write(path, frames)
    config = small_config(path, tmp_path, precision="float64", loss={"stages": [{"energy": 1, "forces": 1}]})
    config["data"] = {"train": str(path), "total_charge": "total_charge"}
    config["model"]["long_range"] |= {"total_charge": rule}
    trainer = Trainer(parse_config(config), quiet=True)
    sample = collate(list(trainer.data.train))
    half = 0.5 * (sample.labels["energy"][1::2] - sample.labels["energy"][::2]) / sample.batch.counts[::2]
    change = torch.cat(
        [torch.from_numpy(b.arrays["forces"] - a.arrays["forces"]) for a, b in zip(*[iter(frames)] * 2, strict=True)]
    )
    floor = float(half.square().mean() + (0.5 * change).square().mean())
    assert fit(trainer, sample, 150) < 0.2 * floor


def test_one_charge_of_all_frames_is_given_as_a_number(tmp_path: Path) -> None:
    """No frame needs to say it, and the card tells it to whoever computes with the model."""
    path = tmp_path / "neutral.extxyz"
    write(path, clusters(4))
    config = small_config(path, tmp_path, loss={"stages": [{"energy": 1, "forces": 1, "total_charge": 0.1}]}, epochs=1)
    config["data"] = {"train": str(path), "total_charge": 0}
    config["model"]["long_range"] |= {"total_charge": "constraint"}
    model = train(config, quiet=True)
    assert model.model is not None
    loaded = load(model.model)
    assert loaded.card.total_charge == 0.0
    molecule = clusters(4)[0]
    assert abs(loaded.compute(molecule, ["charges"])["charges"].sum()) < 1e-5
    for wrong in (float("nan"), True):
        config["data"]["total_charge"] = wrong
        with pytest.raises(ConfigError, match=r"data\.total_charge"):
            train(config, quiet=True)
