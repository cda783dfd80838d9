"""Whole trainings: what they leave on disk, what they learn, and on how many processes."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vesin
import yaml
from ase.io import write
from small_training import clusters, small_config, write_clusters

from farfield.datasets.dataset import collate, label_structures
from farfield.gauge import find_gauge
from farfield.model import Model
from farfield.training import train, train_from_yaml
from farfield.training.checkpoint import load_checkpoint
from farfield.training.config import ConfigError
from farfield.training.data import load_training_data
from farfield.training.loop import Trainer
from farfield.training.losses import loss_of
from farfield.training.reading import parse_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clusters(tmp_path_factory.mktemp("data"), n=12)


def test_a_training_learns_and_leaves_its_outputs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(data, tmp_path, epochs=25, loss={"stages": [{"energy": 10, "forces": 10}]})
    config["optimizer"]["decay"] = {"kind": "none"}
    config["data"]["test"] = {"set": str(data), "last": 2}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    result = train_from_yaml(file, overrides=["name=other", "optimizer.learning_rate=0.02"])
    directory = tmp_path / "other"
    assert result.directory == directory
    assert set(result.metrics) == {"train", "validation", "test"}

    with (directory / "metrics.csv").open() as table:
        rows = list(csv.DictReader(table))
    assert [int(row["epoch"]) for row in rows] == list(range(25))
    assert float(rows[-1]["train/loss"]) < 0.5 * float(rows[0]["train/loss"])
    assert float(rows[-1]["validation/loss"]) < float(rows[0]["validation/loss"])
    best = min(range(25), key=lambda i: float(rows[i]["validation/loss"]))
    assert result.best_epoch == best
    assert result.metrics["validation"]["forces_rmse"] == pytest.approx(float(rows[best]["validation/forces_rmse"]))
    assert list((directory / "tensorboard").glob("events*"))
    assert parse_config(yaml.safe_load((directory / "config.yaml").read_text())).optimizer.learning_rate == 0.02

    table_shown = capsys.readouterr()
    assert "forces RMSE" in table_shown.out
    assert "\r" not in table_shown.err  # no bar where nobody looks

    assert result.model is not None
    model = Model.from_file(result.model)
    assert model.card.elements == (1, 8)
    assert "25 epochs" in table_shown.out
    frames = clusters(12)[-2:]
    computed = model.compute(frames, ["forces"])["forces"]
    errors = np.concatenate([np.asarray(f) for f in computed]) if isinstance(computed, list) else np.asarray(computed)
    labels = np.concatenate([atoms.get_forces() for atoms in frames])
    rmse = 1e3 * np.sqrt(np.mean((errors.reshape(-1, 3) - labels) ** 2))
    assert rmse == pytest.approx(result.metrics["test"]["forces_rmse"], rel=1e-4)


def test_a_bar_is_shown_on_terminals(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes any stream for a terminal
    train(small_config(data, tmp_path, epochs=2))
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "meV/Å" in shown
    train(small_config(data, tmp_path, name="quiet", epochs=1), quiet=True)
    silent = capsys.readouterr()
    assert silent.out == ""
    assert silent.err == ""


def test_repeating_a_training_repeats_it(data: Path, tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        train(small_config(data, tmp_path, name=name, epochs=2), quiet=True)
        weights.append(load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")["weights"])
        torch.manual_seed(1234)
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    train(small_config(data, tmp_path, name="c", epochs=2, seed=4), quiet=True)
    other = load_checkpoint(tmp_path / "c" / "checkpoints" / "last.ckpt")["weights"]
    assert not all(torch.equal(weights[0][key], other[key]) for key in other)


def test_without_validation_the_last_weights_are_kept(data: Path, tmp_path: Path) -> None:
    config = small_config(data, tmp_path, epochs=2)
    config["data"] = {"train": str(data)}
    result = train(config, quiet=True)
    assert set(result.metrics) == {"train"}
    assert result.best_epoch == -1


def test_early_stopping_stops(data: Path, tmp_path: Path) -> None:
    config = small_config(data, tmp_path, epochs=50, stop={"patience": 2, "threshold": 0.99})
    result = train(config, quiet=True)
    assert result.epochs < 10


def test_stress_and_validation_given_as_such(tmp_path: Path) -> None:
    write(tmp_path / "train.extxyz", clusters(6, stress=True))
    write(tmp_path / "validation.extxyz", clusters(3, seed=1, stress=True))
    config = small_config(tmp_path / "train.extxyz", tmp_path, epochs=2, precision="float64")
    config["data"] = {"train": str(tmp_path / "train.extxyz"), "validation": str(tmp_path / "validation.extxyz")}
    config["loss"] = {"kind": "huber", "stages": [{"stress": 10.0}]}
    result = train(config, quiet=True)
    assert set(result.metrics["validation"]) == {
        f"{part}_{kind}" for part in ("energy", "forces", "stress") for kind in ("mae", "rmse")
    }


def test_frames_without_an_energy_are_all_trained_on(tmp_path: Path) -> None:
    """The split is the one that there is without them: ions that only tell a total charge validate nothing."""
    frames = clusters(8)
    for index in (0, 3, 4):
        frames[index].calc = None
    write(tmp_path / "data.extxyz", frames)
    config = small_config(tmp_path / "data.extxyz", tmp_path)
    config["data"]["split"] = {"method": "contiguous", "count": 2}
    data = load_training_data(parse_config(config))
    assert data.validation is not None
    positions = [sample.batch.positions[0].tolist() for sample in (*data.train, *data.validation)]
    np.testing.assert_allclose(positions, [atoms.positions[0] for atoms in frames], atol=1e-6)
    assert (len(data.train), len(data.validation)) == (6, 2)
    frames[6].calc = frames[7].calc = None
    write(tmp_path / "data.extxyz", frames)
    data = load_training_data(parse_config(config))
    assert data.validation is not None
    kept_back = [sample.batch.positions[0].tolist() for sample in data.validation]
    np.testing.assert_allclose(kept_back, [frames[i].positions[0] for i in (2, 5)], atol=1e-6)


def mixed_config(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Return a configuration with a stress loss on molecules and on crystals, the latter alone with a stress."""
    molecules, crystals = clusters(6), clusters(6, seed=1, stress=True)
    write(tmp_path / "data.extxyz", [atoms for pair in zip(molecules, crystals, strict=True) for atoms in pair])
    config = small_config(tmp_path / "data.extxyz", tmp_path, epochs=2, precision="float64", **changes)
    config["loss"] = {"stages": [{"energy": 1.0, "forces": 10.0, "stress": 1e6}]}
    config["data"]["split"] = {"method": "contiguous", "count": 2}
    return config


def test_stress_is_trained_on_where_there_is_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gradient is that of energies and forces of all frames, and of the stress of the periodic ones alone."""
    trainer = Trainer(parse_config(mixed_config(tmp_path)), quiet=True)
    module, weights = trainer.module, trainer.module.weights
    parameters = list(trainer.potential.parameters())

    def loss(indices: list[int], **changed: float) -> torch.Tensor:
        sample = collate([trainer.data.train[i] for i in indices])
        errors = module.errors(trainer.potential, sample, create_graph=True)
        return loss_of(errors, {**weights, **changed}, module.loss_config)

    mixed = loss([0, 1, 2, 3])
    stress_alone = loss([1, 3], energy=0.0, forces=0.0)
    separate = loss([0, 1, 2, 3], stress=0.0) + stress_alone
    torch.testing.assert_close(mixed, separate)
    assert stress_alone > 1e-3 * mixed
    for got, wanted in zip(
        *(torch.autograd.grad(value, parameters, allow_unused=True) for value in (mixed, separate)), strict=True
    ):
        torch.testing.assert_close(got, wanted)
    assert loss([0, 2], energy=0.0, forces=0.0) == 0

    result = train(mixed_config(tmp_path))
    assert "stress_rmse" in result.metrics["validation"]
    assert "train: 5 of 10 frames have no stress" in capsys.readouterr().err


def test_a_label_that_no_frame_has_is_refused(tmp_path: Path) -> None:
    config = mixed_config(tmp_path)
    config["data"]["train"] = {"set": str(tmp_path / "data.extxyz"), "where": {"label": "even"}, "first": 1}
    config["data"]["split"] = None
    with pytest.raises(ConfigError, match=r"data.train: .*\['stress'\].*no frame.*three axes"):
        load_training_data(parse_config(config))
    config["data"]["train"] = str(tmp_path / "data.extxyz")
    config["data"]["columns"] = {"forces": "f"}
    with pytest.raises(ConfigError, match=r"data.train: .*\['forces'\].*no frame"):
        load_training_data(parse_config(config))
    # Open systems cannot have a stress: they may be what is tested on all the same.
    config["data"]["columns"] = None
    config["data"]["test"] = {"set": str(tmp_path / "data.extxyz"), "where": {"label": "even"}, "first": 1}
    test = load_training_data(parse_config(config)).test
    assert test is not None
    assert test[0].labels["stress"].isnan().all()


def test_the_stress_of_an_open_system_is_no_label(tmp_path: Path) -> None:
    """Some codes write zeros there; a stress has a meaning only where there is a volume."""
    config = mixed_config(tmp_path)
    frames = clusters(4, stress=True)
    for atoms in frames[:2]:
        atoms.pbc = False
    write(tmp_path / "data.extxyz", frames)
    config["data"]["split"] = None
    data = load_training_data(parse_config(config))
    assert [bool(sample.labels["stress"].isnan().all()) for sample in data.train] == [True, True, False, False]
    assert data.gaps() == ["train: 2 of 4 frames have no stress, and no such part in the loss"]


def test_the_total_charge_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    frames = clusters(6)
    for atoms in frames:
        atoms.info["total_charge"] = 1
    write(tmp_path / "data.extxyz", frames)
    config = small_config(tmp_path / "data.extxyz", tmp_path, epochs=1)
    config["data"]["total_charge"] = "total_charge"
    config["model"]["long_range"]["total_charge"] = "constraint"
    result = train(config, quiet=True)
    assert result.model is not None
    model = Model.from_file(result.model)
    assert "total charges" in model.card.gauge
    charges = model.compute(frames[0], ["charges"])["charges"]
    assert float(np.asarray(charges).sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_gauge_makes_oxygen_negative_and_leaves_the_energy(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(parse_config(small_config(data, tmp_path)), quiet=True)
    far = trainer.potential.long_range
    assert far is not None
    batch = collate(trainer.data.train.samples).batch
    oxygen = batch.numbers == 8
    energies, charges = [], []
    for _ in range(2):
        sign, said = find_gauge(trainer.potential, batch)
        assert "charge of O" in said
        with torch.no_grad():
            charges.append(sign * trainer.potential.multipoles(batch).charges)
            energies.append(trainer.potential(batch).energy)
        assert charges[-1][oxygen].mean() < 0
        far.charges.scale = -far.charges.scale
    torch.testing.assert_close(charges[0], charges[1])
    torch.testing.assert_close(energies[0], energies[1])


def test_the_module_works_in_lightnings_own_trainer(data: Path, tmp_path: Path) -> None:
    import lightning.pytorch

    trainer = Trainer(parse_config(small_config(data, tmp_path)), quiet=True)
    train_set = list(trainer.data.train.batches(3))
    assert trainer.data.validation is not None
    loader = torch.utils.data.DataLoader(train_set, batch_size=None)
    validation = torch.utils.data.DataLoader(list(trainer.data.validation.batches(3)), batch_size=None)
    before = [p.detach().clone() for p in trainer.potential.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning's own: workers, deprecations
        lightning.pytorch.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(trainer.module, loader, validation)
    assert any(not torch.equal(a, b) for a, b in zip(before, trainer.potential.parameters(), strict=True))


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_twice_the_batch(tmp_path: Path) -> None:
    # Frames of one size: then the mean over two half batches is the mean over the whole one.
    frames = [atoms for atoms in clusters(36) if len(atoms) == 4][:12]
    write(tmp_path / "data.extxyz", frames)

    def run(name: str, **changes: Any) -> dict[str, torch.Tensor]:
        config = small_config(tmp_path / "data.extxyz", tmp_path, name=name, precision="float64", **changes)
        config["data"] = {"train": str(tmp_path / "data.extxyz")}
        config["optimizer"]["decay"] = {"kind": "none"}
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config))
        subprocess.run(
            [sys.executable, "-m", "farfield.training", str(file)],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=300,
        )
        return load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt")

    one = run("one", batch_size=4)
    two = run("two", batch_size=2, devices=2)
    assert one["step"] == two["step"]
    for key, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][key], value, rtol=1e-7, atol=1e-9, msg=key)
    column = one["history"]["columns"].index("train/forces_rmse")
    errors = [state["history"]["values"][-1, column].item() for state in (one, two)]
    assert errors[1] == pytest.approx(errors[0], rel=1e-6)


def test_neighbors_of_a_frame_are_found_once_in_a_run_and_once_on_resuming(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    original = vesin.NeighborList.compute

    def counted(self: vesin.NeighborList, *arguments: Any, **options: Any) -> Any:
        found.append(1)
        return original(self, *arguments, **options)

    monkeypatch.setattr(vesin.NeighborList, "compute", counted)
    train(small_config(data, tmp_path, epochs=2), quiet=True)
    assert len(found) == 12  # training and validation together: epochs, calibration, gauge and metrics take the same
    train(small_config(data, tmp_path, epochs=4), quiet=True, resume=True)
    assert len(found) == 24


def test_labels_that_are_not_trained_on_are_not_kept(tmp_path: Path) -> None:
    frames = clusters(6)
    for atoms in frames:
        atoms.info["ref_dipole"] = np.ones(3)
    assert "dipole" in label_structures(frames).labels
    write(tmp_path / "data.extxyz", frames)
    data = load_training_data(parse_config(small_config(tmp_path / "data.extxyz", tmp_path)))
    assert data.train.labels == {"energy", "forces"}
