"""CHGNet keeps the laws of every host, and its pretrained models keep their energy."""

from __future__ import annotations

import functools
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
    pytest.importorskip("chgnet")

from farfield import augment
from farfield.atoms.batch import AtomicBatch
from farfield.atoms.structures import to_ase
from farfield.hosts.chgnet import CHGNetBackbone, importing
from farfield.model import load
from farfield.potentials.augmented import AugmentedPotential
from farfield.training import train
from farfield.training.config import ConfigError
from farfield.training.loop import Trainer
from farfield.training.reading import parse_config

#: Small, but with all that the adapter converts.
SMALL: dict[str, Any] = {
    "bond_graph_cutoff": 2.5, "atom_fea_dim": 8, "bond_fea_dim": 6, "angle_fea_dim": 5, "num_radial": 5,
    "num_angular": 5, "n_conv": 3, "atom_conv_hidden_dim": 8, "bond_conv_hidden_dim": [8], "mlp_hidden_dims": [8, 8],
}  # fmt: skip


def make(**changes: Any) -> Any:
    """A model by chgnet's own constructor."""
    with importing(), torch.random.fork_rng():
        from chgnet.model import CHGNet

        torch.manual_seed(2)
        return CHGNet(**{"atom_graph_cutoff": 3.0, **SMALL, **changes}).double()


@functools.cache
def pretrained(name: str = "0.3.0") -> Any:
    with importing():
        from chgnet.model import CHGNet

        return CHGNet.load(model_name=name, use_device="cpu", verbose=False)


def boxed(system: AtomicBatch, cutoff: float) -> AtomicBatch:
    """A periodic system that is as good: open directions become those of a box, two cutoffs larger than the extent."""
    if bool(system.pbc.all()):
        return system
    # cells of these tests are triclinic: the open directions are replaced by ones at right angles to the others
    cell, periodic = system.cell[0].detach().clone(), system.pbc[0]
    _, _, basis = torch.linalg.svd(torch.where(periodic[:, None], cell, 0.0))
    free = basis[int(periodic.sum()) :]
    along = system.positions.detach() @ free.T
    lengths = along.amax(0) - along.amin(0) + 2.0 * cutoff
    cell[~periodic] = free * lengths[:, None]
    return system.replace(cell=cell[None], pbc=torch.ones_like(system.pbc))


def energy_by_chgnet(model: Any, system: AtomicBatch) -> Tensor:
    """Energy of one system as chgnet gives it, in double precision; its graphs are made by its own slow converter."""
    from chgnet.graph import CrystalGraphConverter
    from pymatgen.core import Structure

    one = boxed(system, model.model_args["atom_graph_cutoff"])
    positions = one.positions.detach().numpy()
    structure = Structure(one.cell[0].numpy(), one.numbers.tolist(), positions, coords_are_cartesian=True)
    converter = CrystalGraphConverter(
        atom_graph_cutoff=model.model_args["atom_graph_cutoff"],
        bond_graph_cutoff=model.model_args["bond_graph_cutoff"],
        algorithm="legacy",
        on_isolated_atoms="ignore",
    )
    graph = converter(structure)
    # single precision in the converter would leave 1e-5 eV; and so the gradient arrives at the caller's positions
    graph.lattice = one.cell[0]
    wrapped = torch.from_numpy(structure.frac_coords) - one.positions.detach() @ torch.linalg.inv(one.cell[0])
    graph.atom_frac_coord = one.positions @ torch.linalg.inv(one.cell[0]) + wrapped.round()
    graph.neighbor_image = graph.neighbor_image.double().reshape(-1, 3)
    shift = 0.0
    if model.composition_model is not None:
        weights = model.composition_model.fc.weight[0].double()
        shift = weights[one.numbers - 1].sum()
    plain = model.composition_model
    model.composition_model = None  # it is in single precision whatever the dtype
    try:
        return model([graph])["e"][0] * (one.n_atoms if model.is_intensive else 1) + shift
    finally:
        model.composition_model = plain


def split(batch: AtomicBatch) -> list[AtomicBatch]:
    """The systems of a batch, without neighbours."""
    found = []
    for k in range(batch.n_systems):
        own = batch.system == k
        found.append(
            AtomicBatch(
                positions=batch.positions[own],
                numbers=batch.numbers[own],
                cell=batch.cell[k : k + 1],
                pbc=batch.pbc[k : k + 1],
                system=torch.zeros(int(own.sum()), dtype=torch.int64),
            )
        )
    return found


class TestCHGNet(HostLaws):
    far = {**HostLaws.far, "bond_cutoff": 2.5}

    @classmethod
    def backbone(cls) -> nn.Module:
        return CHGNetBackbone([1, 6, 8], 3.0, **SMALL)

    @classmethod
    def native(cls) -> nn.Module:
        return make()

    def native_energy(self, model: nn.Module, batch: AtomicBatch) -> Tensor:
        return torch.stack([energy_by_chgnet(model, one) for one in split(batch)])


# ---- against chgnet --------------------------------------------------------------------------------------------------


def rocksalt() -> AtomicBatch:
    """A primitive cell of MgO, off its symmetric place: all neighbours are images, some of the atom itself."""
    return AtomicBatch(
        positions=torch.tensor([[0.1, -0.05, 0.0], [2.1, 2.15, 2.0]], dtype=torch.float64),
        numbers=torch.tensor([12, 8]),
        cell=torch.tensor([[[0.0, 2.1, 2.1], [2.1, 0.0, 2.1], [2.1, 2.1, 0.0]]], dtype=torch.float64),
        pbc=torch.ones(1, 3, dtype=torch.bool),
        system=torch.zeros(2, dtype=torch.int64),
        total_charge=torch.zeros(1, dtype=torch.float64),
    )


@pytest.mark.parametrize("name", ["0.3.0", "r2scan"])
def test_pretrained_models_keep_their_energy(name: str) -> None:
    potential = augment(name, name="chgnet", charge_scale=1e-30).double()
    model = pretrained(name).double()
    systems = [rocksalt(), crystal(6, 2), crystal(5, 3, left_handed=True)]
    found = potential(joined(systems, potential.cutoff)).energy
    expected = torch.stack([energy_by_chgnet(model, one) for one in systems])
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)


def test_forces_and_stress_of_a_pretrained_model_are_its_own() -> None:
    """By `predict_structure`, as its users call it: single precision, energies per atom, GPa."""
    from pymatgen.io.ase import AseAtomsAdaptor

    model = pretrained().float()
    potential = augment(model, charge_scale=1e-30).double()
    system = crystal(6, 2)
    found = potential.predict(joined([system], potential.cutoff), stress=True)
    (atoms,) = to_ase(system)
    with importing():
        expected = model.predict_structure(AseAtomsAdaptor.get_structure(atoms))
    assert found.energy.item() / 6 == pytest.approx(float(expected["e"]), abs=1e-5)
    scale = float(found.forces.abs().max())
    torch.testing.assert_close(found.forces, torch.tensor(expected["f"]).double(), rtol=0, atol=1e-4 * scale)
    stress = torch.tensor(expected["s"]).double() / 160.21766208
    torch.testing.assert_close(found.stress[0], stress, rtol=0, atol=1e-4 * float(stress.abs().max()))


@pytest.mark.parametrize(
    "changes",
    [
        {"n_conv": 2},
        {"update_bond": False, "update_angle": False},
        {"gMLP_norm": None, "readout_norm": None, "non_linearity": "tanh"},
        {"learnable_rbf": False, "cutoff_coeff": 5},
        {"final_mlp": "gated"},
        {"composition_model": None},
        {"is_intensive": False, "composition_model": "MPF"},
        {"mlp_dropout": 0.3, "conv_dropout": 0.2},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_variants_of_chgnet_keep_their_energy(changes: dict[str, Any]) -> None:
    model = make(**changes).eval()
    potential = augment(model, charge_scale=1e-30)
    system = crystal(6, 2)
    expected = energy_by_chgnet(model, system)
    torch.testing.assert_close(potential(joined([system], 3.0)).energy[0], expected.detach())
    assert potential.receptive_radius == 3.0 * model.n_conv


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mlp_out_bias": True}, "mlp_out_bias"),
        ({"mlp_first": False}, "mlp_first"),
        ({"conv_norm": "layer"}, "conv_norm"),
        ({"gMLP_norm": "batch"}, "gMLP_norm"),
        ({"is_intensive": False}, "per atom"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_models_whose_energy_is_no_smooth_sum_over_atoms_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        augment(make(**changes))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"elements": [1, 95]}, "elements.*95"),
        ({"bond_graph_cutoff": 7.0}, "bond_graph_cutoff.*7"),
        ({"n_conv": 1}, "n_conv.*1"),
        ({"readout_norm": "batch"}, "readout_norm.*batch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        CHGNetBackbone(**{"elements": [1], **SMALL, **arguments})


def test_other_models_and_heads_are_refused() -> None:
    with importing():
        from chgnet.model import CHGNet
    model = make()
    with pytest.raises(ValueError, match="one energy"):
        augment(model, head="pbe")
    model.__class__ = type("MyCHGNet", (CHGNet,), {})
    with pytest.raises(ValueError, match="MyCHGNet"):
        augment(model)


def test_energies_of_elements_keep_double_precision() -> None:
    potential = augment("0.3.0", name="chgnet")
    assert potential.dtype == torch.float32
    assert len(potential.reference_energies) == 94
    assert potential.reference_energies[8] == pytest.approx(-8.3861, abs=1e-6)


# ---- files and training ----------------------------------------------------------------------------------------------


def test_files_of_its_trainer_need_trust_only_if_they_hold_code(tmp_path: Path) -> None:
    model = make()
    torch.save({"model": model.as_dict(), "optimizer": {}}, tmp_path / "safe.pth.tar")
    torch.save({"model": model.as_dict(), "history": Path("x")}, tmp_path / "code.pth.tar")
    torch.save({"weights": model.state_dict()}, tmp_path / "other.pth.tar")
    system = joined([crystal(6, 2)], 3.0)
    expected = energy_by_chgnet(model, crystal(6, 2)).detach()
    for name, trust in (("safe", False), ("code", True)):
        potential = augment(tmp_path / f"{name}.pth.tar", name="chgnet", trust=trust, charge_scale=1e-30).double()
        torch.testing.assert_close(potential(system).energy[0], expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="trust"):
        augment(tmp_path / "code.pth.tar", name="chgnet")
    with pytest.raises(ValueError, match="model_args"):
        augment(tmp_path / "other.pth.tar", name="chgnet")
    with pytest.raises(FileNotFoundError, match=r"0\.3\.0, r2scan"):
        augment(tmp_path / "no.pth.tar", name="chgnet")


def test_calibration_keeps_energies_of_trained_models_and_scales_features() -> None:
    potential = augment(make(), charge_scale=1e-30)
    batch = joined(mixed()[1:3], 3.0)
    before = potential(batch).energy
    potential.calibrate(batch, 5.0)
    torch.testing.assert_close(potential(batch).energy, before)
    for layer in potential.backbone(batch).scalars.chunk(2, dim=1):
        assert layer.square().mean().item() == pytest.approx(1.0)


def configuration(folder: Path, backbone: dict[str, Any], **model: Any) -> dict[str, Any]:
    config = small_config(write_clusters(folder), folder, epochs=1)
    far = {"n_hidden": [6], "dipoles": True, "bond_cutoff": 2.5}
    config["model"] = {"backbone": backbone, "long_range": far, **model}
    return config


def test_a_configuration_trains_chgnet_from_scratch(tmp_path: Path) -> None:
    model = load(train(configuration(tmp_path, {"host": "chgnet", "cutoff": 3.0, **SMALL}), quiet=True).model)
    assert model.card.elements == (1, 8)
    assert isinstance(model.potential.backbone, CHGNetBackbone)


def test_a_configuration_starts_from_the_pretrained_chgnet_and_keeps_it(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"host": "chgnet", "checkpoint": "0.3.0"}, reference_energies="host")
    config["optimizer"]["short_range_rate"] = 0
    potential = load(train(config, quiet=True).model).potential
    batch = potential.add_neighbors(crystal(6, 2))
    alone = AugmentedPotential(potential.backbone, reference_energies=potential.reference_energies).double()
    expected = energy_by_chgnet(pretrained().double(), crystal(6, 2)).detach()
    torch.testing.assert_close(alone(batch).energy[0], expected, rtol=0, atol=1e-4)


def test_a_checkpoint_that_is_not_there_is_refused_by_the_configuration(tmp_path: Path) -> None:
    config = configuration(tmp_path, {"host": "chgnet", "checkpoint": "0.2.0"})
    with pytest.raises(ConfigError, match=r"0\.2\.0.*0\.3\.0, r2scan"):
        Trainer(parse_config(config), quiet=True)
