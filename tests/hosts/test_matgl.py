"""The networks of MatGL keep the laws of every host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from host_laws import HostLaws, mixed
from potential_structures import crystal, joined
from small_training import small_config, write_clusters
from torch import Tensor, nn

if os.environ.get("FARFIELD_HOST") != "rest":  # its session must not pass by skipping
    pytest.importorskip("matgl")

from farfield import augment
from farfield.atoms.batch import AtomicBatch
from farfield.hosts.matgl import MatGLBackbone, importing
from farfield.model import load
from farfield.training import train

#: Small, but with all that the adapter converts.
SMALL: dict[str, dict[str, Any]] = {
    "TensorNet": {"units": 6, "num_rbf": 5, "nblocks": 1},
    "M3GNet": {
        "dim_node_embedding": 6, "dim_edge_embedding": 5, "units": 6, "nblocks": 2, "max_n": 2, "max_l": 2,
        "threebody_cutoff": 2.5,
    },
    "CHGNet": {
        "dim_atom_embedding": 6, "dim_bond_embedding": 5, "dim_angle_embedding": 4, "num_blocks": 2, "max_n": 4,
        "max_f": 2, "threebody_cutoff": 2.5, "atom_conv_hidden_dims": [6], "bond_conv_hidden_dims": [6],
        "final_hidden_dims": [6],
    },
    "SO3Net": {"dim_node_embedding": 6, "units": 6, "nblocks": 2, "nmax": 3, "lmax": 2},
}  # fmt: skip


def make(architecture: str, **changes: Any) -> Any:
    """A network by matgl's own constructor."""
    with importing(), torch.random.fork_rng():
        import matgl.models

        torch.manual_seed(2)
        settings = {"element_types": ("H", "C", "O"), "cutoff": 3.0, "is_intensive": False, **SMALL[architecture]}
        return getattr(matgl.models, architecture)(**{**settings, **changes}).double()


def energy_by_matgl(model: Any, batch: AtomicBatch) -> Tensor:
    """Energies as matgl gives them, system by system, from graphs of its own class."""
    from torch_geometric.data import Data

    pairs = batch.neighbors
    assert pairs is not None
    found = []
    for k in range(batch.n_systems):
        own, atoms = batch.system[pairs.i] == k, (batch.system == k).nonzero()[:, 0]
        images = pairs.shifts[own].to(batch.positions.dtype)
        graph = Data(
            pos=batch.positions[atoms],
            node_type=(batch.numbers[atoms][:, None] == torch.tensor([1, 6, 8])).long().argmax(1),
            edge_index=torch.stack([pairs.i[own], pairs.j[own]]) - atoms[0],
            pbc_offset=images,
            pbc_offshift=images @ batch.cell[k],
        )
        found.append(model(graph).reshape(()))
    return torch.stack(found)


class MatGLLaws(HostLaws):
    architecture = ""

    @classmethod
    def backbone(cls) -> nn.Module:
        return MatGLBackbone([1, 6, 8], 3.0, architecture=cls.architecture, **SMALL[cls.architecture])

    @classmethod
    def native(cls) -> nn.Module:
        return make(cls.architecture)

    def native_energy(self, model: nn.Module, batch: AtomicBatch) -> Tensor:
        return energy_by_matgl(model, batch)


class TestTensorNet(MatGLLaws):
    architecture = "TensorNet"


class TestM3GNet(MatGLLaws):
    architecture = "M3GNet"
    far = {**HostLaws.far, "bond_cutoff": 2.5}


class TestCHGNet(MatGLLaws):
    architecture = "CHGNet"
    far = {**HostLaws.far, "bond_cutoff": 2.5}


class TestSO3Net(MatGLLaws):
    architecture = "SO3Net"
    turning = {"rtol": 1e-5, "atol": 1e-5}


# ---- against matgl ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("TensorNet", {"nblocks": 2, "rbf_type": "SphericalBessel", "use_smooth": True}),
        ("TensorNet", {"activation_type": "tanh", "width": 0.4}),
        ("M3GNet", {"use_smooth": True, "dropout": 0.2}),
        ("M3GNet", {"nblocks": 1, "max_n": 3}),
        ("CHGNet", {"num_blocks": 3, "normalization": "layer", "final_mlp_type": "gated"}),
        ("CHGNet", {"bond_update_hidden_dims": [5], "num_site_targets": 2, "conv_dropout": 0.1}),
        ("SO3Net", {"lmax": 1, "nblocks": 1}),
        ("SO3Net", {"lmax": 3, "rbf_learnable": True}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)
def test_variants_keep_their_energy(architecture: str, changes: dict[str, Any]) -> None:
    model = make(architecture, **changes).eval()
    batch = joined(mixed()[:3], 3.0)
    expected = energy_by_matgl(model, batch)  # leaves features with a graph in the model
    potential = augment(model, charge_scale=1e-30)
    torch.testing.assert_close(potential(batch).energy, expected.detach())
    assert potential.backbone.from_config(potential.backbone.config()).n_scalars == potential.backbone.n_scalars


@pytest.mark.parametrize("architecture", list(SMALL))
def test_a_potential_keeps_scale_shift_and_energies_of_elements(architecture: str, tmp_path: Path) -> None:
    """By matgl's own class, with its forces and stress, from memory and from its files."""
    with importing():
        from matgl.apps.pes import Potential
        from torch_geometric.data import Batch, Data

        network = make(architecture)
        references = torch.tensor([-1.5, -10.25, -20.5], dtype=torch.float64)
        native = Potential(network, data_mean=0.7, data_std=2.5, element_refs=references).double().eval()
        native.save(tmp_path / "model")
    system = crystal(6, 2)
    batch = joined([system], 3.0)
    pairs = batch.neighbors
    graph = Data(
        node_type=(system.numbers[:, None] == torch.tensor([1, 6, 8])).long().argmax(1),
        edge_index=torch.stack([pairs.i, pairs.j]),
        pbc_offset=pairs.shifts.double(),
        frac_coords=system.positions @ torch.linalg.inv(system.cell[0]),
        num_nodes=6,
    )
    energy, forces, stress, _ = native(Batch.from_data_list([graph]), system.cell)
    with pytest.raises(ValueError, match="trust"):
        augment(tmp_path / "model", name="matgl")
    for potential in (
        augment(native, charge_scale=1e-30),
        augment(tmp_path / "model", name="matgl", trust=True, charge_scale=1e-30).double(),
    ):
        assert potential.reference_energies == {1: -1.5, 6: -10.25, 8: -20.5}
        found = potential.predict(batch, stress=True)
        torch.testing.assert_close(found.energy, energy.detach().reshape(1), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.forces, forces.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.stress[0], stress.detach() / 160.21766208, rtol=1e-5, atol=1e-6)
        potential.calibrate(batch, 5.0)
        torch.testing.assert_close(potential(batch).energy, found.energy)
        assert potential.backbone(batch).scalars.square().mean().item() == pytest.approx(1.0)


def test_files_that_are_not_there_are_not_looked_for_in_the_net(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model.json"):
        augment(tmp_path / "TensorNet-MatPES", name="matgl", trust=True)


def test_building_leaves_precisions_as_they_were() -> None:
    import matgl

    torch.set_default_dtype(torch.float64)
    try:
        backbone = MatGLBackbone([1], 3.0, architecture="SO3Net", **SMALL["SO3Net"])
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert matgl.float_th == torch.float32
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float64}


@pytest.mark.parametrize(
    ("architecture", "changes", "reason"),
    [
        ("TensorNet", {"is_intensive": True}, "is_intensive"),
        ("TensorNet", {"equivariance_invariance_group": "SO(3)"}, r"SO\(3\)"),
        ("CHGNet", {"pooling_operation": "mean"}, "pooling_operation"),
        ("CHGNet", {"num_blocks": 1}, "num_blocks.*1"),
        ("CHGNet", {"layer_bond_weights": "both"}, "layer_bond_weights"),
        ("SO3Net", {"target_property": "dipole_moment"}, "target_property"),
    ],
)
def test_networks_with_other_energies_are_refused(architecture: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        augment(make(architecture, **changes))


def test_other_models_are_refused() -> None:
    with importing():
        from matgl.apps.pes import Potential
        from matgl.models import MEGNet

        with pytest.raises(ValueError, match=r"MEGNet.*TensorNet"):
            augment(MEGNet(element_types=("H", "C")))
    network = make("TensorNet")
    with pytest.raises(ValueError, match="zbl"):
        augment(Potential(network, calc_repuls=True))
    with pytest.raises(ValueError, match="several states"):
        augment(Potential(network, element_refs=torch.zeros(2, 3)))
    with pytest.raises(ValueError, match="one energy"):
        augment(network, head="pbe")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"architecture": "MEGNet"}, "MEGNet.*TensorNet"),
        ({"unit": 5}, "unit.*no setting.*units"),
        ({"is_intensive": True}, "is_intensive"),
        ({"architecture": "M3GNet", "threebody_cutoff": 5.0}, "threebody_cutoff"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        MatGLBackbone([1, 6], 3.0, **arguments)


@pytest.mark.parametrize("architecture", ["TensorNet", "M3GNet"])
def test_a_configuration_trains_networks_from_scratch(architecture: str, tmp_path: Path) -> None:
    config = small_config(write_clusters(tmp_path), tmp_path, epochs=1)
    backbone = {"host": "matgl", "architecture": architecture, "cutoff": 3.0, **SMALL[architecture]}
    far = {"n_hidden": [6], "dipoles": True, "bond_cutoff": 2.5}
    config["model"] = {"backbone": backbone, "long_range": far}
    model = load(train(config, quiet=True).model)
    assert model.card.elements == (1, 8)
    assert model.potential.backbone.architecture == architecture
