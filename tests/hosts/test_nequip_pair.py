"""The far field as a ``pair_potential`` inside of nequip's own models."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from host_laws import HostLaws, deformable, mixed
from nequip_native import graph_model, inputs_of
from potential_structures import joined
from small_training import write_clusters
from torch import Tensor, nn

if os.environ.get("FARFIELD_HOST") != "rest":  # its session must not pass by skipping
    pytest.importorskip("allegro")

from farfield import augment, load
from farfield.hosts.nequip_pair import LongRangeEnergy, potential_of
from farfield.model import Model

PAIR = {"_target_": "farfield.hosts.nequip_pair.LongRangeEnergy"}
FAR: dict[str, Any] = {**HostLaws.far, "charge_scale": 0.5, "accuracy": 1e-6, "charge": 1.0}
COMMON: dict[str, Any] = {
    "avg_num_neighbors": 4.5, "per_type_energy_scales": 0.02,
    "per_type_energy_shifts": {"H": -1.0, "C": -7.0, "O": -3.0},
}  # fmt: skip


def make(host: str, **far: Any) -> nn.Module:
    pair = {**PAIR, **far} if far else None
    if host == "nequip":
        settings: dict[str, Any] = {"num_layers": 2, "l_max": 2, "num_features": 4, "radial_mlp_width": 8}
        return graph_model("nequip.model.NequIPGNNModel", pair_potential=pair, **settings, **COMMON)
    embed = {"_target_": "allegro.nn.TwoBodyBesselScalarEmbed"}
    settings = {"num_layers": 2, "l_max": 2, "num_scalar_features": 6, "num_tensor_features": 4}
    return graph_model(
        "allegro.model.AllegroModel", pair_potential=pair, radial_chemical_embed=embed, **settings, **COMMON
    )


@pytest.fixture(scope="module", params=["nequip", "allegro"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return make(request.param, **FAR)


def test_forces_and_stress_of_nequip_are_slopes_of_the_whole_energy(model: nn.Module) -> None:
    batch = joined(mixed(), 3.0)
    found = model(inputs_of(batch))
    short = copy.deepcopy(model)
    del short.model.func.pair_potential
    short = short(inputs_of(batch))
    assert (found["forces"] - short["forces"]).norm() > 2.0 * short["forces"].norm()  # the long range dominates
    move, strain, deformed = deformable(batch)

    def energy(shift: float, stretch: float) -> Tensor:
        return model.model.func(inputs_of(deformed(shift, stretch)))["total_energy"][:, 0]

    by_forces = -batch.sum_over_atoms(found["forces"] * move).sum(1)
    slope = HostLaws.slope_of(lambda step: energy(step, 0.0))
    torch.testing.assert_close(by_forces, slope, rtol=1e-6, atol=1e-6)
    full = batch.pbc.all(-1)
    volume = torch.linalg.det(batch.cell).abs()
    by_stress = (found["stress"] * strain).sum((1, 2)) * volume
    slope = HostLaws.slope_of(lambda step: energy(0.0, step))
    torch.testing.assert_close(by_stress[full], slope[full], rtol=1e-6, atol=1e-6)


def test_the_long_range_trains_heads_and_layers(model: nn.Module) -> None:
    model = copy.deepcopy(model).train()
    func = model.model.func
    # without the short range: it is the long range that reaches the layers
    func.per_type_energy_scale_shift.scales.zero_()
    model(inputs_of(joined(mixed()[1:3], 3.0)))["forces"].square().sum().backward()
    far = func.pair_potential.long_range
    first = getattr(func, "layer0_convnet", None) or func.tensor_embed
    for part in (far.charges, far.dipoles, far.quadrupoles, far.polarizability, first):
        assert max(float(p.grad.abs().max()) for p in part.parameters()) > 0


def test_it_becomes_a_potential_of_farfield(model: nn.Module) -> None:
    potential = potential_of(model)
    batch = joined(mixed(), 3.0)
    expected = model(inputs_of(batch))
    found = potential.predict(batch, stress=True)
    torch.testing.assert_close(found.energy, expected["total_energy"][:, 0], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.forces, expected["forces"], rtol=1e-8, atol=1e-8)
    full = batch.pbc.all(-1)
    torch.testing.assert_close(found.stress[full], expected["stress"][full], rtol=1e-8, atol=1e-9)
    assert potential.reference_energies == {1: -1.0, 6: -7.0, 8: -3.0}
    with pytest.raises(ValueError, match="LongRangeEnergy"):
        augment(model)


def test_a_system_by_itself_needs_no_batch(model: nn.Module) -> None:
    data = inputs_of(joined(mixed()[1:2], 3.0))
    expected = model(dict(data))
    del data["batch"], data["num_atoms"]
    found = model(data)
    torch.testing.assert_close(found["forces"], expected["forces"])
    torch.testing.assert_close(found["stress"], expected["stress"])


def test_the_charge_of_the_data_goes_before_the_default(model: nn.Module) -> None:
    data = inputs_of(joined(mixed()[:1], 3.0))
    expected = model(dict(data))["total_energy"]
    torch.testing.assert_close(model({**data, "charge": torch.ones(1, 1).double()})["total_energy"], expected)
    assert (model({**data, "charge": torch.zeros(1, 1).double()})["total_energy"] - expected).abs() > 0.1


def test_charges_from_bonds_find_their_neighbours() -> None:
    """Pairs come in nequip's order: bond charges of both ends must cancel."""
    model = make("nequip", bond_charges=0.4, charge_scale=1e-30)
    batch = joined(mixed()[:1], 3.0)
    potential = potential_of(model)
    shuffled = torch.randperm(len(batch.neighbors.i), generator=torch.Generator().manual_seed(0))
    data = inputs_of(batch)
    data["edge_index"], data["edge_cell_shift"] = data["edge_index"][:, shuffled], data["edge_cell_shift"][shuffled]
    assert potential(batch).long_range_energy.abs() > 1e-3
    torch.testing.assert_close(model(data)["total_energy"][:, 0], potential(batch).energy)


def test_what_it_cannot_do_is_refused(model: nn.Module) -> None:
    data = inputs_of(joined(mixed()[1:2], 3.0))
    without = {key: value for key, value in data.items() if key != "pbc"}
    with pytest.raises(ValueError, match="pbc"):
        model(without)
    with pytest.raises(RuntimeError, match="eager"):
        torch.fx.experimental.proxy_tensor.make_fx(lambda x: model.model.func({**data, "pos": x})["total_energy"])(
            data["pos"]
        )
    with pytest.raises(Exception, match="no element symbols"):
        LongRangeEnergy(["H", "Water"], {"atomic_energy": "0e"})


@pytest.mark.slow
@pytest.mark.parametrize("host", ["nequip", "allegro"])
def test_the_example_configuration_trains(host: str, tmp_path: Path, repository: Path) -> None:
    """What `nequip-train` writes, and `nequip-package` makes of it, is a potential of farfield."""
    data = write_clusters(tmp_path)
    command = [
        sys.executable, "-m", "nequip.scripts.train", "-cp", str(repository / "configs" / "hosts"), "-cn", host,
        f"file={data}", "types=[H,O]", "cutoff=3.0", "trainer.max_epochs=1", "trainer.accelerator=cpu",
        f"hydra.run.dir={tmp_path / 'run'}", "+trainer.logger=false",
    ]  # fmt: skip
    small = {"nequip": ["num_features=[4,4,4]"], "allegro": ["num_scalar_features=8", "num_tensor_features=4"]}
    command += [f"training_module.model.{option}" for option in small[host]]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    (checkpoint,) = (tmp_path / "run").glob("*.ckpt")
    with pytest.raises(ValueError, match="trust"):
        potential_of(checkpoint, name=host)
    potential = potential_of(checkpoint, name=host, trust=True)
    if host == "nequip":  # once: it takes its time
        package = tmp_path / "best.nequip.zip"
        command = [sys.executable, "-m", "nequip.scripts.package", "build", str(checkpoint), str(package)]
        subprocess.run(command, capture_output=True, cwd=tmp_path, check=True)
        packaged = potential_of(package, name=host, trust=True).state_dict()
        for name, weight in potential.state_dict().items():
            assert torch.equal(packaged[name], weight)
    Model(potential).save(tmp_path / "model.ff")
    again = load(tmp_path / "model.ff").potential
    oxygen = mixed()[0].replace(numbers=torch.full((6,), 8)).to(dtype=again.dtype)
    found = again.predict(again.add_neighbors(oxygen))
    assert found.long_range_energy.abs() > 0
    assert found.forces.isfinite().all()
