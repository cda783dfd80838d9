"""Wrong configurations are refused with the offending key and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from small_training import small_config, write_clusters

from farfield.training.build import build_potential, calibrate
from farfield.training.config import ConfigError, ModelConfig
from farfield.training.data import load_training_data
from farfield.training.reading import apply_overrides, parse_config, read_config


def changed(key: str, value: Any) -> dict[str, Any]:
    """Return a valid configuration with one key changed."""
    return apply_overrides(small_config(Path("data.extxyz"), Path("runs")), [f"{key}={yaml.safe_dump(value)}"])


@pytest.mark.parametrize(
    ("key", "value", "parts"),
    [
        ("bach_size", 3, ["bach_size", "unknown key", "'batch_size'"]),
        ("optimizer.learning_rat", 0.1, ["optimizer.learning_rat", "'learning_rate'", "warmup_steps"]),
        ("optimizer.decay.kind", "platau", ["optimizer.decay.kind", "platau", "'plateau'", "cosine"]),
        ("optimizer.learning_rate", -1, ["optimizer.learning_rate", "-1", "greater than 0"]),
        ("precision", "float16", ["precision", "float16", "float32"]),
        ("epochs", "many", ["epochs", "many", "integer"]),
        ("loss.stages.1.force", 1, ["loss.stages.1.force", "'forces'", "from_epoch"]),
        ("loss.stages.0.from_epoch", 7, ["from_epoch", "[7, 2]"]),
        ("loss.stages.0", {"energy": 0, "forces": 0}, ["stage 0", "zero"]),
        ("data.split", {"count": 3, "fraction": 0.1}, ["data.split", "exactly one"]),
        ("data.train", [], ["data", "train"]),
        ("data.validation", "other", ["data", "not both"]),
        ("data.units", {"energy": "kkal/mol"}, ["data.units", "kkal/mol"]),
        ("data.columns", {"forcs": "f"}, ["data.columns.forcs", "'forces'"]),
        ("model.backbone", {"cutoff": 3}, ["model.backbone", "kind"]),
        ("name", "../elsewhere", ["name", "../elsewhere"]),
    ],
)
def test_wrong_values_are_named(key: str, value: Any, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(changed(key, value))
    for part in parts:
        assert part in str(caught.value)


def test_missing_sections_are_named() -> None:
    with pytest.raises(ConfigError, match="data: missing"):
        parse_config({"name": "x", "model": {"backbone": {"kind": "cace"}}})


def test_several_errors_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"(?s)threads.*epochs"):
        parse_config({**small_config(Path("a"), Path("b")), "epochs": 0, "threads": 0})


@pytest.mark.parametrize(
    ("section", "change", "parts"),
    [
        ("backbone", {"kind": "mase"}, ["model.backbone.kind", "mase", "cace"]),
        ("backbone", {"n_besel": 3}, ["model.backbone.n_besel", "'n_bessel'"]),
        ("backbone", {"cutoff": -3.0}, ["model.backbone", "cutoff"]),
        ("backbone", {"elements": ["H"]}, ["elements", "8"]),
        ("backbone", {"elements": ["Hx"]}, ["elements", "Hx"]),
        ("long_range", {"smering": 1.0}, ["model.long_range.smering", "'smearing'"]),
        ("long_range", {"scalars": 3}, ["model.long_range.scalars", "leave it out"]),
        ("long_range", {"dipoles": True}, ["model.long_range", "vectors"]),
    ],
)
def test_wrong_arguments_of_the_model_are_named(
    tmp_path: Path, section: str, change: dict[str, Any], parts: list[str]
) -> None:
    config = small_config(write_clusters(tmp_path), tmp_path)
    config["model"][section] |= change
    parsed = parse_config(config)
    data = load_training_data(parsed)
    with pytest.raises(ConfigError) as caught:
        build_potential(parsed.model, data.train)
    for part in parts:
        assert part in str(caught.value)


def test_elements_come_from_the_data(tmp_path: Path) -> None:
    config = parse_config(small_config(write_clusters(tmp_path), tmp_path))
    potential = build_potential(config.model, load_training_data(config).train)
    assert potential.config()["backbone"]["elements"] == [1, 8]


def test_reference_energies_by_symbol(tmp_path: Path) -> None:
    config = parse_config(small_config(write_clusters(tmp_path), tmp_path))
    given = ModelConfig(backbone=config.model.backbone, reference_energies={"H": -1.0, "O": -2.0})
    assert build_potential(given, load_training_data(config).train).reference_energies == {1: -1.0, 8: -2.0}
    unknown = ModelConfig(backbone=config.model.backbone, reference_energies={"Q": -1.0})
    with pytest.raises(ConfigError, match="Q"):
        build_potential(unknown, load_training_data(config).train)


def test_labels_that_the_loss_needs_must_be_there(tmp_path: Path) -> None:
    config = small_config(write_clusters(tmp_path), tmp_path)
    config["loss"] = {"stages": [{"stress": 1}]}
    with pytest.raises(ConfigError, match=r"data\.train.*stress"):
        load_training_data(parse_config(config))


def test_overrides() -> None:
    values = {"a": {"b": 1}, "c": [{"d": 2}]}
    result = apply_overrides(values, ["a.b=1e-3", "c.0.d=x", "e.f=null", "g=[1, 2]"])
    assert result == {"a": {"b": 0.001}, "c": [{"d": "x"}], "e": {"f": None}, "g": [1, 2]}
    assert values == {"a": {"b": 1}, "c": [{"d": 2}]}


@pytest.mark.parametrize("override", ["a", "=3", "a.b.c=3", "c.1.d=3", "c.x=3"])
def test_wrong_overrides_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        apply_overrides({"a": {"b": 1}, "c": [{"d": 2}]}, [override])


def test_unreadable_configurations(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_config(tmp_path / "nowhere.yaml")
    file = tmp_path / "config.yaml"
    file.write_text("a: [1, 2")
    with pytest.raises(ConfigError, match="not YAML"):
        read_config(file)
    file.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match="mapping"):
        read_config(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not YAML"):
        read_config(file)


def test_a_configuration_says_only_what_differs(tmp_path: Path) -> None:
    base = small_config(Path("data"), Path("runs"))
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    twin = tmp_path / "twin.yaml"
    twin.write_text("extends: base.yaml\nname: twin\nmodel: {long_range: null}\n")
    first, second = read_config(tmp_path / "base.yaml"), read_config(twin)
    assert second.name == "twin"
    assert second.model.long_range is None
    assert second.model.backbone == first.model.backbone
    twin.write_text("extends: twin.yaml\n")
    with pytest.raises(ConfigError, match="extends itself"):
        read_config(twin)
    twin.write_text("extends: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"nowhere.*twin"):
        read_config(twin)


def test_shipped_configurations_are_valid(repository: Path) -> None:
    files = sorted((repository / "configs").glob("*.yaml"))
    assert files
    for file in files:
        read_config(file)


def test_reference_energies_leave_out_what_nominal_charges_bring(tmp_path: Path) -> None:
    # Least squares leave residuals that no energies of atoms explain: orthogonal to every count of atoms.
    nominal = {"n_hidden": [6], "nominal_charges": {"H": 2.0, "O": -4.0}}
    config = parse_config(small_config(write_clusters(tmp_path), tmp_path))
    model = config.model.model_copy(update={"long_range": nominal})
    train = load_training_data(config).train
    potential = build_potential(model, train)
    train = train.with_neighbors(potential.cutoff)

    def left() -> np.ndarray:
        residuals = [float(sample.labels["energy"].sum() - potential(sample.batch).energy.detach()) for sample in train]
        counts = [[float((sample.batch.numbers == z).sum()) for z in (1, 8)] for sample in train]
        return np.array(counts).T @ np.array(residuals)

    assert np.abs(left()).max() > 1.0
    calibrate(potential, train, model)
    assert np.abs(left()).max() < 1e-2
