"""Allegro keeps the laws of every host, and can be taken from its own files."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from host_laws import HostLaws, mixed
from nequip_native import augmented_with_its_energy, energy_by_nequip, graph_model
from small_training import small_config, write_clusters
from torch import Tensor, nn

if os.environ.get("FARFIELD_HOST") != "rest":  # its session must not pass by skipping
    pytest.importorskip("allegro")

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import find_neighbors
from farfield.hosts.allegro import AllegroBackbone
from farfield.hosts.registry import host_of
from farfield.model import load
from farfield.training import train

#: Small, but with all that the adapter converts.
SMALL: dict[str, Any] = {
    "num_layers": 2, "l_max": 2, "num_scalar_features": 6, "num_tensor_features": 4,
    "scalar_embed_mlp_hidden_layers_width": 8, "allegro_mlp_hidden_layers_width": 8,
    "readout_mlp_hidden_layers_width": 8,
}  # fmt: skip


def make(**changes: Any) -> nn.Module:
    """A model by Allegro's own builder, with energies of the elements and scales."""
    settings = {
        **SMALL, "avg_num_neighbors": 4.5, "num_layers": 3,
        "radial_chemical_embed": {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed", "num_bessels": 4},
        "per_type_energy_scales": {"H": 0.5, "C": 0.7, "O": 0.9},
        "per_type_energy_shifts": {"H": -5.0, "C": -17.0, "O": -30.0},
    }  # fmt: skip
    return graph_model("allegro.model.AllegroModel", **{**settings, **changes})


@functools.cache
def standard() -> nn.Module:
    """The model without changes. Copy it to change it."""
    return make()


class TestAllegro(HostLaws):
    @classmethod
    def backbone(cls) -> nn.Module:
        return AllegroBackbone([1, 6, 8], 3.0, **SMALL)

    @classmethod
    def native(cls) -> nn.Module:
        return standard()

    def native_energy(self, model: nn.Module, batch: AtomicBatch) -> Tensor:
        return energy_by_nequip(model, batch)


@pytest.mark.parametrize(
    "changes",
    [
        {"parity": False},
        {"num_layers": 1},
        {"avg_num_neighbors": {"H": 3.0, "C": 5.0, "O": 4.0}},
        {"tp_path_channel_coupling": False, "weight_individual_irreps": False},
        {
            "radial_chemical_embed": {
                "_target_": "allegro.nn.TwoBodySplineScalarEmbed",
                "num_splines": 8,
                "spline_span": 5,
            }
        },
        {"radial_chemical_embed_dim": 10, "forward_normalize": False},
        {"allegro_mlp_hidden_layers_depth": 2, "allegro_mlp_nonlinearity": None, "readout_mlp_nonlinearity": "mish"},
        {"scalar_embed_mlp_hidden_layers_depth": 0, "per_edge_type_cutoff": {"H": {"H": 2.0}, "O": 2.8}},
        {"pair_potential": {"_target_": "nequip.nn.pair_potential.ZBL", "units": "metal"}},
        {"model_dtype": "float32"},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_variants_of_allegro_keep_their_energy(changes: dict[str, Any]) -> None:
    potential = augmented_with_its_energy(make(**changes), changes.get("model_dtype") == "float32")
    layers = changes.get("num_layers", 3)
    assert potential.backbone.n_scalars == 6 * (layers + 1)
    # the harmonics, and what all layers but the last make of them
    assert potential.backbone.n_vectors == potential.backbone.n_tensors == 4 * layers
    assert potential.receptive_radius == 3.0


def test_features_end_smoothly_at_the_cutoff() -> None:
    """An atom that leaves takes its edges with it: sums over edges must not jump."""
    backbone = AllegroBackbone([1, 6, 8], 3.0, **SMALL)

    def features(distance: float) -> Tensor:
        positions = torch.tensor([[0.0, 0, 0], [1.0, 0.2, 0], [distance, 0, 0]], dtype=torch.float64)
        batch = mixed()[0].replace(
            positions=positions, numbers=torch.tensor([8, 1, 1]), system=torch.zeros(3, dtype=torch.int64)
        )
        found = backbone(find_neighbors(batch, 3.0))
        return torch.cat([found.scalars[0], found.vectors[0].flatten(), found.tensors[0].flatten()])

    inside, outside, well_inside = features(3.0 - 1e-4), features(3.0 + 1e-4), features(2.5)
    torch.testing.assert_close(inside, outside, rtol=0, atol=1e-8)
    assert (well_inside - outside).abs().max() > 1e-3


def test_the_host_of_a_model_is_named() -> None:
    assert host_of(standard()) == "allegro"


# ---- training --------------------------------------------------------------------------------------------------------


def test_a_configuration_trains_allegro_from_scratch(tmp_path: Path) -> None:
    config = small_config(write_clusters(tmp_path), tmp_path, epochs=1)
    backbone = {"host": "allegro", "cutoff": 3.0, **SMALL}
    config["model"] = {"backbone": backbone, "long_range": {"n_hidden": [6], "dipoles": True, "quadrupoles": True}}
    model = load(train(config, quiet=True).model)
    assert isinstance(model.potential.backbone, AllegroBackbone)
    assert float(model.potential.backbone.host.allegro.avg_num_neighbors_norm.norm_const[0]) < 0.9
