"""MACE keeps the laws of every host, and can be taken from its own files."""

from __future__ import annotations

import copy
import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from host_laws import HostLaws, mixed
from mace_inputs import inputs_of
from potential_structures import joined
from small_training import small_config, write_clusters
from torch import Tensor, nn

if os.environ.get("FARFIELD_HOST") != "mace":  # its session must not pass by skipping
    pytest.importorskip("mace")

from farfield import augment
from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import find_neighbors
from farfield.compat.les import install
from farfield.compat.les.maceles import forces_and_stress
from farfield.hosts.base import traceless_from_l2
from farfield.hosts.mace import MACEBackbone
from farfield.hosts.mace_models import importing
from farfield.model import load
from farfield.potentials.augmented import AugmentedPotential
from farfield.training import train
from farfield.training.build import refit_reference_energies
from farfield.training.config import ConfigError
from farfield.training.loop import Trainer
from farfield.training.reading import parse_config

#: Small, but with all that the adapter converts.
SMALL: dict[str, Any] = {
    "hidden_irreps": "4x0e+4x1o+4x2e",
    "max_ell": 2,
    "correlation": 2,
    "num_bessel": 4,
    "radial_MLP": [8],
    "MLP_irreps": "4x0e",
}


def make(kind: str = "ScaleShiftMACE", **changes: Any) -> nn.Module:
    """A model by mace's own constructor, with energies of the elements, scale and shift."""
    with importing(), torch.random.fork_rng():
        import mace.modules as modules
        import numpy as np
        from e3nn import o3

        torch.manual_seed(2)
        heads = changes.get("heads", ["Default"])
        settings = {
            "r_max": 3.0, "num_bessel": 4, "num_polynomial_cutoff": 6, "max_ell": 2,
            "interaction_cls": modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
            "interaction_cls_first": modules.interaction_classes["RealAgnosticInteractionBlock"],
            "num_interactions": 2, "num_elements": 3, "hidden_irreps": o3.Irreps("5x0e+5x1o"),
            "MLP_irreps": o3.Irreps("4x0e"), "atomic_energies": np.linspace(-30, -5, 3 * len(heads)).reshape(-1, 3),
            "avg_num_neighbors": 4.5, "atomic_numbers": [1, 6, 8], "correlation": 2,
            "gate": torch.nn.functional.silu, "radial_MLP": [8],
        }  # fmt: skip
        if kind == "ScaleShiftMACE":
            settings |= {"atomic_inter_scale": [0.7] * len(heads), "atomic_inter_shift": [0.3] * len(heads)}
        cls = changes.pop("build", None) or getattr(modules, kind)
        return cls(**{**settings, **changes})


@functools.cache
def standard() -> nn.Module:
    """The model without changes, made once: e3nn compiles for ten seconds. Copy it to change it."""
    return make()


def energy_by_mace(model: nn.Module, batch: AtomicBatch, head: int = 0) -> Tensor:
    """Energies as mace gives them."""
    return model(inputs_of(batch, head), compute_force=False)["energy"]


class TestMACE(HostLaws):
    @classmethod
    def backbone(cls) -> nn.Module:
        return MACEBackbone([1, 6, 8], 3.0, **SMALL)

    @classmethod
    def native(cls) -> nn.Module:
        return standard()

    def native_energy(self, model: nn.Module, batch: AtomicBatch) -> Tensor:
        return energy_by_mace(model, batch)


def test_tensors_of_l2_are_those_of_e3nn() -> None:
    with importing():
        from e3nn import o3

        vectors = torch.randn(5, 1, 3)
        components = o3.spherical_harmonics(2, vectors, normalize=False, normalization="norm")
    dyads = vectors[..., :, None] * vectors[..., None, :]
    trace = vectors.square().sum(-1)[..., None, None] / 3.0 * torch.eye(3)
    torch.testing.assert_close(traceless_from_l2(components) * (2 / 3) ** 0.5, (dyads - trace), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "MACE"},
        {"num_interactions": 1},
        {"num_interactions": 3, "correlation": [3, 2, 2]},
        {"pair_repulsion": True, "distance_transform": "Agnesi"},
        {"radial_type": "gaussian"},
        {"keep_last_layer_irreps": True},
        {"atomic_inter_scale": 0.7, "atomic_inter_shift": 0.3},  # numbers, as files of old have them
    ],
    ids=lambda changes: " ".join(changes),
)
def test_variants_of_mace_keep_their_energy(changes: dict[str, Any]) -> None:
    model = make(**changes)
    potential = augment(model)
    batch = joined(mixed(), 3.0)
    expected = energy_by_mace(model, batch)
    energy = potential(batch).energy - potential(batch).long_range_energy
    torch.testing.assert_close(energy, expected.double(), rtol=1e-8, atol=1e-8)
    layers = len(model.interactions)
    assert potential.backbone.n_scalars == 5 * layers
    kept = layers if changes.get("keep_last_layer_irreps") else layers - 1
    assert potential.backbone.n_vectors == 5 * kept
    assert potential.receptive_radius == 3.0 * layers


@pytest.mark.parametrize("head", [0, 1])
def test_one_of_several_heads_is_chosen(head: int) -> None:
    model = make(heads=["pbe", "scan"])
    with pytest.raises(ValueError, match=r"head.*pbe"):
        augment(model)
    potential = augment(model, head=["pbe", "scan"][head], charge_scale=1e-30)
    batch = joined(mixed(), 3.0)
    torch.testing.assert_close(potential(batch).energy, energy_by_mace(model, batch, head).double())


def test_energies_of_elements_keep_double_precision() -> None:
    model = copy.deepcopy(standard()).float()
    found = augment(model)
    assert found.dtype == torch.float32
    assert found.reference_energies == pytest.approx({1: -30.0, 6: -17.5, 8: -5.0})
    assert not found.backbone.host.atomic_energies_fn.atomic_energies.any()


def test_a_checkpoint_is_a_pickle_and_needs_trust(tmp_path: Path) -> None:
    model = standard()
    torch.save(model, tmp_path / "mace.model")
    with pytest.raises(ValueError, match="trust"):
        augment(tmp_path / "mace.model", name="mace")
    potential = augment(tmp_path / "mace.model", name="mace", trust=True, charge_scale=1e-30)
    batch = joined(mixed(), 3.0)
    torch.testing.assert_close(potential(batch).energy, energy_by_mace(model, batch).double())
    with pytest.warns(UserWarning, match="is a pickle"):
        short = load(tmp_path / "mace.model", trust=True)
    assert not short.is_long_range
    torch.testing.assert_close(short.potential(batch).energy, potential(batch).energy)


def test_importing_mace_leaves_torch_load_safe() -> None:
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    assert torch.get_default_dtype() == torch.float32


def test_calibration_keeps_energies_of_trained_models_and_scales_features() -> None:
    potential = augment(standard(), charge_scale=1e-30)
    batch = find_neighbors(mixed()[1], 3.0)
    before = potential(batch).energy
    potential.calibrate(batch, 5.0)
    torch.testing.assert_close(potential(batch).energy, before)
    features = potential.backbone(batch)
    assert features.scalars.square().mean().item() == pytest.approx(1.0)
    assert features.vectors.square().sum(-1).mean().item() == pytest.approx(1.0)


def test_other_kinds_of_mace_are_refused() -> None:
    model = copy.deepcopy(standard())
    model.__class__ = type("PolarMACE", (type(model),), {"__module__": "mace.modules.extensions"})
    with pytest.raises(ValueError, match="PolarMACE"):
        augment(model)


# ---- training --------------------------------------------------------------------------------------------------------


def configuration(folder: Path, backbone: dict[str, Any], **model: Any) -> dict[str, Any]:
    config = small_config(write_clusters(folder), folder, epochs=1)
    config["model"] = {"backbone": backbone, "long_range": {"n_hidden": [6], "dipoles": True}, **model}
    return config


def test_a_configuration_trains_mace_from_scratch(tmp_path: Path) -> None:
    result = train(configuration(tmp_path, {"host": "mace", "cutoff": 3.0, **SMALL}), quiet=True)
    model = load(result.model)
    assert model.card.elements == (1, 8)
    assert isinstance(model.potential.backbone, MACEBackbone)
    # fresh weights take number of neighbours and scale from the data
    assert float(model.potential.backbone.host.interactions[0].avg_num_neighbors) > 1.5


def test_a_configuration_starts_from_a_checkpoint_and_keeps_it(tmp_path: Path) -> None:
    host = standard()
    torch.save(host, tmp_path / "mace.model")
    backbone = {"host": "mace", "checkpoint": str(tmp_path / "mace.model"), "trust": True}
    config = configuration(tmp_path, backbone, reference_energies="host")
    config["optimizer"]["short_range_rate"] = 0
    potential = load(train(config, quiet=True).model).potential
    batch = potential.add_neighbors(mixed()[0])
    without = replace_far(potential).double()
    torch.testing.assert_close(without(batch).energy, energy_by_mace(host, batch), rtol=1e-6, atol=1e-5)


def replace_far(potential: AugmentedPotential) -> AugmentedPotential:
    return AugmentedPotential(potential.backbone, reference_energies=potential.reference_energies)


def test_reference_energies_of_a_checkpoint_are_refitted_to_the_labels(tmp_path: Path) -> None:
    """Labels of another level of theory: what is left of them after the host's energy is nothing but elements."""
    torch.save(standard(), tmp_path / "mace.model")
    backbone = {"host": "mace", "checkpoint": str(tmp_path / "mace.model"), "trust": True}
    trainer = Trainer(parse_config(configuration(tmp_path, backbone)), quiet=True)
    potential, samples = trainer.potential, list(trainer.data.train)
    for sample in samples:
        shift = sum({1: 3.0, 8: -7.0}[int(z)] for z in sample.batch.numbers)
        sample.labels["energy"].copy_(potential(sample.batch).energy.detach() + shift)
    refit_reference_energies(potential, trainer.config.model, trainer.data.train)
    for sample in samples:
        torch.testing.assert_close(potential(sample.batch).energy, sample.labels["energy"], rtol=0, atol=1e-5)


def test_a_checkpoint_without_trust_or_with_other_elements_is_refused(tmp_path: Path) -> None:
    torch.save(make(atomic_numbers=[1, 6, 7]), tmp_path / "mace.model")
    backbone = {"host": "mace", "checkpoint": str(tmp_path / "mace.model")}
    with pytest.raises(ConfigError, match="trust"):
        Trainer(parse_config(configuration(tmp_path, backbone)), quiet=True)
    with pytest.raises(ConfigError, match=r"lacks elements.*\[8\]"):
        Trainer(parse_config(configuration(tmp_path, {**backbone, "trust": True})), quiet=True)


# ---- the drop-in for les ---------------------------------------------------------------------------------------------


def test_maceles_runs_on_the_drop_in_with_forces_and_stress_of_its_energy() -> None:
    install()
    with importing():
        from mace.modules.extensions import MACELES
    settings = {"atomic_inter_scale": 0.7, "atomic_inter_shift": 0.3, "les_arguments": {"accuracy": 1e-6}}
    model = make("ScaleShiftMACE", build=MACELES, **settings)
    with torch.no_grad():
        for parameter in model.les_readouts.parameters():
            parameter.mul_(20.0)  # so that the long range dominates the stress
    batch = joined(mixed()[1:3], 3.0)
    found = forces_and_stress(model, inputs_of(batch))
    move = torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    strain = torch.tensor([[0.3, 0.2, -0.1], [0.2, -0.4, 0.5], [-0.1, 0.5, 0.6]], dtype=torch.float64)

    def energy(step: float) -> Tensor:
        deform = torch.eye(3, dtype=torch.float64) + step * strain
        moved = batch.replace(positions=(batch.positions + step * move) @ deform, cell=batch.cell @ deform)
        return model(inputs_of(moved), compute_force=False)["energy"].detach()

    slope = HostLaws.slope_of(energy)
    volume = torch.linalg.det(batch.cell).abs()
    expected = (found["stress"] * strain).sum((1, 2)) * volume
    expected = expected - batch.sum_over_atoms(found["forces"] * move).sum(1)
    assert found["les_energy"].abs().min() > 0.1
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-6)
    own = model(inputs_of(batch), compute_stress=True)["stress"]
    assert (own - found["stress"]).abs().max() > 1e-4  # mace-torch's own lacks the long range
