"""The short range may learn more slowly than the far field, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_training import small_config, write_clusters

from farfield.model import load
from farfield.training import train
from farfield.training.config import ConfigError
from farfield.training.loop import Trainer
from farfield.training.reading import parse_config


def first_step(data: Path, output: Path, rate: float) -> dict[str, torch.Tensor]:
    """How far a first step moves each weight."""
    config = small_config(data, output)
    config["optimizer"] |= {"short_range_rate": rate, "clip": None, "amsgrad": False}
    trainer = Trainer(parse_config(config), quiet=True)
    before = {name: value.detach().clone() for name, value in trainer.potential.named_parameters()}
    trainer.train_step([0, 1], list(trainer.potential.parameters()))
    return {name: value.detach() - before[name] for name, value in trainer.potential.named_parameters()}


def test_the_rate_is_that_of_the_backbone_alone(tmp_path: Path) -> None:
    data = write_clusters(tmp_path)
    full, slow = first_step(data, tmp_path / "a", 1.0), first_step(data, tmp_path / "b", 0.1)
    for name in full:
        expected = full[name] * (0.1 if name.startswith("backbone.") else 1.0)
        torch.testing.assert_close(slow[name], expected, rtol=1e-3, atol=1e-8)
    assert any(full[name].abs().max() > 0 for name in full if name.startswith("backbone."))


def test_zero_keeps_the_short_range_as_it_is(tmp_path: Path) -> None:
    data = write_clusters(tmp_path)
    first = train(small_config(data, tmp_path / "first", epochs=1), quiet=True).model
    config = small_config(data, tmp_path / "second", epochs=2, initial=str(first))
    config["optimizer"]["short_range_rate"] = 0
    second = train(config, quiet=True).model
    assert first is not None
    assert second is not None
    before, after = (load(path).potential.state_dict() for path in (first, second))
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name.startswith("backbone."))
    assert not torch.equal(before["long_range.charges.linear.weight"], after["long_range.charges.linear.weight"])


def test_a_frozen_model_without_far_field_is_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path / "x", tmp_path)
    config["model"]["long_range"] = None
    config["optimizer"]["short_range_rate"] = 0
    with pytest.raises(ConfigError, match="nothing is left"):
        parse_config(config)


@pytest.mark.parametrize(
    ("backbone", "said"),
    [
        ({"kind": "cace", "host": "mace"}, "either `kind` or `host`"),
        ({"cutoff": 3.0}, "host: mace"),
        ({"kind": "cace", "checkpoint": "x"}, "file of a host"),
    ],
)
def test_backbones_are_named_once(tmp_path: Path, backbone: dict, said: str) -> None:
    config = small_config(tmp_path / "x", tmp_path)
    config["model"]["backbone"] = backbone
    with pytest.raises(ConfigError, match=said):
        parse_config(config)


def test_energies_of_a_host_need_its_checkpoint(tmp_path: Path) -> None:
    config = small_config(tmp_path / "x", tmp_path)
    config["model"]["reference_energies"] = "host"
    with pytest.raises(ConfigError, match="checkpoint"):
        parse_config(config)


def test_a_host_without_an_adapter_is_refused_with_the_reason(tmp_path: Path) -> None:
    config = small_config(write_clusters(tmp_path), tmp_path)
    config["model"]["backbone"] = {"host": "schnetpack"}
    with pytest.raises(ConfigError, match=r"model\.backbone\.host.*sympy"):
        Trainer(parse_config(config), quiet=True)
