"""NequIP keeps the laws of every host, and can be taken from its own files."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from host_laws import HostLaws, mixed
from nequip_native import augmented_with_its_energy, energy_by_nequip, graph_model, write_checkpoint
from potential_structures import joined
from small_training import small_config, write_clusters
from torch import Tensor, nn

if os.environ.get("FARFIELD_HOST") != "rest":  # its session must not pass by skipping
    pytest.importorskip("nequip")

from farfield import augment
from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import find_neighbors
from farfield.hosts.nequip import NequIPBackbone
from farfield.hosts.registry import host_of
from farfield.model import load
from farfield.potentials.augmented import AugmentedPotential
from farfield.training import train

#: Small, but with all that the adapter converts.
SMALL: dict[str, Any] = {"num_layers": 2, "l_max": 2, "num_features": [6, 4, 4], "radial_mlp_width": 8}


BUILDER = "nequip.model.NequIPGNNModel"
NATIVE: dict[str, Any] = {
    "num_layers": 3, "l_max": 1, "num_features": 5, "radial_mlp_width": 8, "avg_num_neighbors": 4.5,
    "per_type_energy_scales": {"H": 0.5, "C": 0.7, "O": 0.9},
    "per_type_energy_shifts": {"H": -5.0, "C": -17.0, "O": -30.0},
}  # fmt: skip


def make(**changes: Any) -> nn.Module:
    """A model by nequip's own builder, with energies of the elements and scales."""
    return graph_model(BUILDER, **{**NATIVE, **changes})


@functools.cache
def standard() -> nn.Module:
    """The model without changes. Copy it to change it."""
    return make()


class TestNequIP(HostLaws):
    @classmethod
    def backbone(cls) -> nn.Module:
        return NequIPBackbone([1, 6, 8], 3.0, **SMALL)

    @classmethod
    def native(cls) -> nn.Module:
        return standard()

    def native_energy(self, model: nn.Module, batch: AtomicBatch) -> Tensor:
        return energy_by_nequip(model, batch)


@pytest.mark.parametrize(
    "changes",
    [
        {"parity": False, "l_max": 2},
        {"num_layers": 1},
        {"avg_num_neighbors": {"H": 3.0, "C": 5.0, "O": 4.0}},
        {"per_type_energy_shifts": -3.0, "per_type_energy_scales": 2.0},
        {"per_type_energy_shifts_trainable": True, "per_type_energy_scales_trainable": True},
        {"per_edge_type_cutoff": {"H": {"H": 2.0, "C": 2.5}, "O": 2.8}},
        {"readout_mlp_hidden_layers_depth": 1, "readout_mlp_nonlinearity": "mish", "bessel_trainable": True},
        {"convnet_resnet": True, "learnable_shift": True, "type_embed_num_features": 7},
        {"pair_potential": {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal"}},
        {"model_dtype": "float32"},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_variants_of_nequip_keep_their_energy(changes: dict[str, Any]) -> None:
    potential = augmented_with_its_energy(make(**changes), changes.get("model_dtype") == "float32")
    layers = changes.get("num_layers", 3)
    embedded = changes.get("type_embed_num_features", 5)
    assert potential.backbone.n_scalars == 5 * layers + embedded
    # there are vectors in all layers but the last, made from scalars in the first
    assert potential.backbone.n_vectors == 5 * (layers - 1)
    assert potential.receptive_radius == 3.0 * layers


def test_energies_of_elements_keep_double_precision() -> None:
    found = augment(standard())
    assert found.reference_energies == {1: -5.0, 6: -17.0, 8: -30.0}
    assert found.backbone.host.per_type_energy_scale_shift.shifts.numel() == 0


def test_building_leaves_no_trace() -> None:
    import e3nn

    before = dict(e3nn.get_optimization_defaults()), torch.get_default_dtype()
    augment(standard())
    assert (dict(e3nn.get_optimization_defaults()), torch.get_default_dtype()) == before


def test_calibration_sets_scales_of_fresh_models_and_keeps_energies_of_trained_ones() -> None:
    batch = find_neighbors(mixed()[1], 3.0)
    potential = augment(standard(), charge_scale=1e-30)
    before = potential(batch).energy
    potential.calibrate(batch, 5.0)
    torch.testing.assert_close(potential(batch).energy, before)
    features = potential.backbone(batch)
    assert features.scalars.square().mean().item() == pytest.approx(1.0)
    assert features.vectors.square().sum(-1).mean().item() == pytest.approx(1.0)
    fresh = augment(NequIPBackbone([1, 6, 8], 3.0, **SMALL))
    fresh.calibrate(batch, 5.0)
    neighbors = len(batch.neighbors.i) / batch.n_atoms
    norm = fresh.backbone.host.layer1_convnet.conv.avg_num_neighbors_norm.norm_const
    torch.testing.assert_close(norm, torch.full((3, 1), neighbors**-0.5).double())
    torch.testing.assert_close(fresh.backbone.host.per_type_energy_scale_shift.scales, torch.full((3, 1), 5.0).double())


def test_models_that_would_not_be_copied_are_refused() -> None:
    with pytest.raises(ValueError, match="LennardJones"):
        augment(make(pair_potential={"_target_": "nequip.nn.pair_potential.LennardJones", "lj_sigma": 1.0}))
    with pytest.raises(ValueError, match=r"'Water'.*no element"):
        augment(make(type_names=["H", "Water"], per_type_energy_scales=1.0, per_type_energy_shifts=0.0))
    with pytest.raises(ValueError, match="settings"):
        augment(make(convnet_nonlinearity_gates={"e": "ssp", "o": "tanh"}))
    with pytest.raises(ValueError, match="nequip refuses"):
        NequIPBackbone([1], 3.0, polynomial_cutoff_p=1)


def test_the_host_of_a_model_is_named() -> None:
    assert host_of(standard()) == "nequip"


def test_a_checkpoint_of_nequip_is_a_pickle_and_needs_trust(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "best.ckpt", BUILDER, **NATIVE)
    with pytest.raises(ValueError, match="trust"):
        augment(tmp_path / "best.ckpt", name="nequip")
    with pytest.raises(ValueError, match="'other'.*sole_model"):
        augment(tmp_path / "best.ckpt", name="nequip", trust=True, head="other")
    potential = augment(tmp_path / "best.ckpt", name="nequip", trust=True, charge_scale=1e-30)
    batch = joined(mixed(), 3.0)
    torch.testing.assert_close(potential(batch).energy, energy_by_nequip(model, batch))
    assert torch.get_default_dtype() == torch.float32


# ---- training --------------------------------------------------------------------------------------------------------


def configuration(folder: Path, backbone: dict[str, Any], **model: Any) -> dict[str, Any]:
    config = small_config(write_clusters(folder), folder, epochs=1)
    config["model"] = {"backbone": backbone, "long_range": {"n_hidden": [6], "dipoles": True}, **model}
    return config


def test_a_configuration_starts_from_a_checkpoint_and_keeps_it(tmp_path: Path) -> None:
    host = write_checkpoint(tmp_path / "best.ckpt", BUILDER, **NATIVE)
    backbone = {"host": "nequip", "checkpoint": str(tmp_path / "best.ckpt"), "trust": True}
    config = configuration(tmp_path, backbone, reference_energies="host")
    config["optimizer"]["short_range_rate"] = 0
    potential = load(train(config, quiet=True).model).potential.double()
    batch = potential.add_neighbors(mixed()[0])
    without = AugmentedPotential(potential.backbone, reference_energies=potential.reference_energies)
    torch.testing.assert_close(without(batch).energy, energy_by_nequip(host, batch), rtol=1e-6, atol=1e-5)


def test_a_configuration_trains_nequip_from_scratch(tmp_path: Path) -> None:
    result = train(configuration(tmp_path, {"host": "nequip", "cutoff": 3.0, **SMALL}), quiet=True)
    model = load(result.model)
    assert model.card.elements == (1, 8)
    assert isinstance(model.potential.backbone, NequIPBackbone)
    # fresh weights take the number of neighbours from the data
    assert float(model.potential.backbone.host.layer0_convnet.conv.avg_num_neighbors_norm.norm_const[0]) < 0.9
