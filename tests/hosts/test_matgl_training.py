"""The far field inside of matgl's own `Potential`, and its Lightning module."""

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
from potential_structures import joined
from small_training import write_clusters
from torch import Tensor

if os.environ.get("FARFIELD_HOST") != "rest":  # its session must not pass by skipping
    pytest.importorskip("matgl")

from farfield import augment
from farfield.atoms.batch import AtomicBatch
from farfield.hosts.matgl import importing
from farfield.hosts.matgl_training import LongRangeModel, potential_of
from farfield.model import Model, load

with importing():
    import matgl
    from matgl.apps.pes import Potential
    from matgl.ext.ase import PESCalculator
    from matgl.utils.training import PotentialLightningModule
    from torch_geometric.data import Batch, Data

GPA = 160.21766208
FAR: dict[str, Any] = {**HostLaws.far, "charge_scale": 0.5, "accuracy": 1e-6, "charge": 1.0}
BACKBONES: dict[str, dict[str, Any]] = {
    "TensorNet": {"units": 6, "num_rbf": 5, "nblocks": 1},
    "M3GNet": {
        "dim_node_embedding": 6, "dim_edge_embedding": 5, "units": 6, "nblocks": 2, "max_n": 2, "max_l": 2,
        "threebody_cutoff": 2.5,
    },
}  # fmt: skip
SCALES: dict[str, Any] = {"data_mean": 0.7, "data_std": 0.05, "element_refs": [-1.5, -10.25, -20.5]}


def network(architecture: str = "TensorNet") -> Any:
    """A network by matgl's own constructor."""
    with importing(), torch.random.fork_rng():
        import matgl.models

        torch.manual_seed(2)
        cls = getattr(matgl.models, architecture)
        settings = BACKBONES[architecture]
        return cls(element_types=("H", "C", "O"), cutoff=3.0, is_intensive=False, **settings).double()


def make(architecture: str = "TensorNet", **changes: Any) -> LongRangeModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        bonds = {} if architecture == "TensorNet" else {"bond_cutoff": 2.5}
        model = LongRangeModel(network(architecture), **{**FAR, **bonds, **changes})
    graphs, lattices = graphs_of(joined(mixed(), 3.0))
    model.calibrate(graphs, lattices)
    return model


def around(model: LongRangeModel, **options: Any) -> Any:
    with importing():
        return Potential(model, **{**SCALES, **options}).double().eval()


def graphs_of(batch: AtomicBatch, *, pbc: bool = True) -> tuple[Any, Tensor]:
    """Graphs and lattices as matgl's converters make them, in double precision; slabs and wires need ``pbc``."""
    pairs = batch.neighbors
    assert pairs is not None
    graphs, lattices = [], []
    for k in range(batch.n_systems):
        own, atoms = batch.system[pairs.i] == k, (batch.system == k).nonzero()[:, 0]
        lattice = batch.cell[k] if batch.pbc[k].any() else torch.eye(3, dtype=torch.float64)
        graph = Data(
            node_type=(batch.numbers[atoms][:, None] == torch.tensor([1, 6, 8])).long().argmax(1),
            edge_index=torch.stack([pairs.i[own], pairs.j[own]]) - atoms[0],
            pbc_offset=pairs.shifts[own].double(),
            frac_coords=batch.positions[atoms] @ torch.linalg.inv(lattice),
            num_nodes=len(atoms),
        )
        if pbc:
            graph.pbc = batch.pbc[k : k + 1]
        graphs.append(graph)
        lattices.append(lattice)
    return Batch.from_data_list(graphs), torch.stack(lattices)


@pytest.fixture(scope="module", params=list(BACKBONES))
def potential(request: pytest.FixtureRequest) -> Any:
    return around(make(request.param))


def test_forces_and_stress_of_matgl_are_slopes_of_the_whole_energy(potential: Any) -> None:
    architecture = potential.model.backbone.architecture
    potential = around(potential.model, data_std=1e-3)
    batch = joined(mixed(), 3.0)
    graphs, lattices = graphs_of(batch)
    _, forces, stress, _ = potential(graphs, lattices)
    near = around(network(architecture), data_std=1e-3)(graphs, lattices)[1]
    assert (forces - near).norm() > 2.0 * near.norm()  # the long range dominates
    move, strain, deformed = deformable(batch)

    def energy(shift: float, stretch: float) -> Tensor:
        with torch.enable_grad():
            return potential(*graphs_of(deformed(shift, stretch)))[0].detach()

    by_forces = -batch.sum_over_atoms(forces * move).sum(1)
    torch.testing.assert_close(by_forces, HostLaws.slope_of(lambda step: energy(step, 0.0)), rtol=1e-6, atol=1e-6)
    volume = torch.linalg.det(lattices).abs()
    by_stress = (stress.reshape(-1, 3, 3) * strain).sum((1, 2)) * volume / GPA
    # of open systems and slabs, too: matgl divides by the volume of whatever lattice there is
    torch.testing.assert_close(by_stress, HostLaws.slope_of(lambda step: energy(0.0, step)), rtol=1e-6, atol=1e-6)


def test_the_long_range_energy_does_not_depend_on_scales() -> None:
    """In eV: what is left of the energy without the far field, whatever `data_std` and `data_mean` are."""
    model = make()
    inputs = graphs_of(joined(mixed(), 3.0))
    found = []
    for scales in ({"data_std": 1.0, "data_mean": 0.0}, {"data_std": 0.05}, {"data_std": 40.0, "data_mean": -3.0}):
        whole = around(model, **scales)
        short = around(network(), **scales)  # matgl's own
        found.append((whole(*inputs)[0] - short(*inputs)[0]).detach())
    assert found[0][:-1].abs().min() > 0.05
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_it_becomes_a_potential_of_farfield(potential: Any, tmp_path: Path) -> None:
    mine = potential_of(potential)
    assert mine.reference_energies == {1: -1.5, 6: -10.25, 8: -20.5}
    batch = joined(mixed(), mine.cutoff)
    energy, forces, stress, _ = potential(*graphs_of(batch))
    Model(mine).save(tmp_path / "model.ff")
    for one in (mine, load(tmp_path / "model.ff").potential):
        found = one.predict(batch, stress=True)
        # `data_std` and the others have been single precision in matgl
        torch.testing.assert_close(found.energy, energy.detach(), rtol=1e-9, atol=1e-7)
        torch.testing.assert_close(found.forces, forces.detach(), rtol=1e-8, atol=1e-8)
        full = batch.pbc.all(-1)
        torch.testing.assert_close(found.stress[full], stress.reshape(-1, 3, 3)[full] / GPA, rtol=1e-8, atol=1e-8)
    with pytest.raises(ValueError, match="LongRangeModel"):
        potential_of(around(network()))
    with pytest.raises(ValueError, match="potential_of"):
        augment(potential)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_a_lightning_step_changes_host_and_heads(dtype: torch.dtype) -> None:
    model = make().to(dtype)
    before = {name: value.clone() for name, value in model.named_parameters()}
    lit = PotentialLightningModule(model, stress_weight=0.1, lr=1e-3, data_std=0.05).to(dtype)
    lit.log_dict = lambda *a, **k: None  # there is no trainer
    batch = joined(mixed()[:2], 3.0)
    graphs, lattices = graphs_of(batch)
    labels = [torch.zeros(2), torch.zeros(batch.n_atoms, 3), torch.zeros(6, 3)]
    (optimizer,), _ = lit.configure_optimizers()
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = lit.training_step((graphs, lattices, torch.zeros(2, 2), *(x.to(dtype) for x in labels)), 0)["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("backbone.") for name in changed)
    for head in ("charges", "dipoles", "quadrupoles", "polarizability"):
        assert any(name.startswith(f"long_range.{head}.") for name in changed)
    found = potential_of(lit)(batch.to(dtype=dtype)).energy
    torch.testing.assert_close(found, lit(graphs, lattices)[0].double(), rtol=1e-5, atol=1e-4)


def test_the_long_range_alone_trains_the_network() -> None:
    """The slope of a loss on forces is right: by gradients, and by differences."""
    model = make()
    whole = around(model).train()
    inputs = graphs_of(joined(mixed()[1:3], 3.0))
    model.backbone.energy_scale.zero_()
    weight = model.backbone.host.tensor_embedding.distance_proj1.weight
    step = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(size: float) -> Tensor:
        with torch.no_grad():
            weight.add_(size * step)
        return whole(*inputs)[1].square().sum()

    slope = (torch.autograd.grad(loss(0.0), weight)[0] * step).sum()
    assert slope.abs() > 1e-4
    torch.testing.assert_close(slope, (loss(1e-5) - loss(-2e-5)).detach() / 2e-5, rtol=1e-5, atol=1e-7)


def test_lattices_tell_molecules_from_crystals() -> None:
    whole = around(make())
    batch = joined(mixed()[:3], 3.0)
    expected = whole(*graphs_of(batch))[0]
    torch.testing.assert_close(whole(*graphs_of(batch, pbc=False))[0], expected)
    for k in range(3):  # one by one, as a batch of one and as a graph without any
        graphs, lattices = graphs_of(joined(mixed()[k : k + 1], 3.0), pbc=False)
        for graph, lattice in ((graphs, lattices[0]), (graphs.to_data_list()[0], lattices)):
            torch.testing.assert_close(whole(graph, lattice)[0].reshape(()), expected[k])


def test_the_charge_of_a_graph_goes_before_the_default() -> None:
    whole = around(make())
    graphs, lattices = graphs_of(joined(mixed()[:2], 3.0))
    expected = whole(graphs, lattices)[0]
    graphs.total_charge = torch.tensor([1.0, 0.0])
    found = whole(graphs, lattices)[0]
    torch.testing.assert_close(found[0], expected[0])
    assert (found[1] - expected[1]).abs() > 0.1


def test_the_order_of_edges_does_not_matter() -> None:
    """Charges from bonds take neighbours in farfield's order: those of both ends must cancel."""
    whole = around(make(bond_charges=0.4, charge_scale=1e-30))
    batch = joined(mixed()[:1], 3.0)
    assert potential_of(whole)(batch).long_range_energy.abs() > 1e-3
    graphs, lattices = graphs_of(batch)
    expected = whole(graphs, lattices)[0]
    shuffled = torch.randperm(len(batch.neighbors.i), generator=torch.Generator().manual_seed(0))
    graphs.edge_index, graphs.pbc_offset = graphs.edge_index[:, shuffled], graphs.pbc_offset[shuffled]
    torch.testing.assert_close(whole(graphs, lattices)[0], expected)


def test_files_and_calculator_of_matgl_know_it(tmp_path: Path) -> None:
    from ase.build import bulk, molecule

    with importing():
        whole = Potential(make(polarizability_scale=0.02).float(), **SCALES)
        whole.save(tmp_path / "saved")
        again = matgl.load_model(tmp_path / "saved")
    crystal = bulk("CO", "rocksalt", a=3.4)
    for atoms in (molecule("CH3CHO"), crystal):
        found = []
        for model in (whole, again):
            atoms.calc = PESCalculator(model)
            found.append((atoms.get_potential_energy(), atoms.get_forces()))
        assert found[0][0] == found[1][0]
        assert abs(found[0][1] - found[1][1]).max() == 0.0
    copied = copy.deepcopy(whole)
    copied.data_std.mul_(2.0)  # a copy reads its own scale
    graphs, lattices = graphs_of(joined(mixed()[:1], 3.0))
    far = potential_of(copied)(joined(mixed()[:1], 3.0).to(dtype=torch.float32)).energy
    torch.testing.assert_close(copied(graphs, lattices)[0].double(), far, rtol=1e-5, atol=1e-4)


def test_what_it_cannot_do_is_refused() -> None:
    model = make()
    graphs, lattices = graphs_of(joined(mixed()[:2], 3.0))
    with pytest.raises(RuntimeError, match="Potential"):
        model(graphs)
    with pytest.raises(ValueError, match="give its `model`"):
        LongRangeModel(around(network()))
    with pytest.raises(ValueError, match="compile_model"):
        around(make(), compile_model=True)
    with pytest.raises(ValueError, match="magnetic"):
        around(make(), calc_magmom=True)(graphs, lattices)
    with pytest.raises(ValueError, match=r"bond.* reach 4 Å"):
        LongRangeModel(network("M3GNet"), dipoles=True, bond_cutoff=4.0)
    with pytest.raises(ValueError, match="vectors"):
        LongRangeModel(network("M3GNet"), dipoles=True)
    alone = mixed()[5].replace(cell=9.0 * torch.eye(3, dtype=torch.float64)[None], pbc=torch.ones(1, 3).bool())
    with pytest.raises(ValueError, match="no edges"):
        around(model)(*graphs_of(joined([alone], 3.0)))
    with pytest.raises(ValueError, match="zbl"):
        potential_of(around(model, calc_repuls=True))


@pytest.mark.slow
def test_the_example_trains(tmp_path: Path, repository: Path) -> None:
    """Matgl's own trainer, on a file of clusters; what it writes is a model of farfield."""
    data = write_clusters(tmp_path)
    command = [sys.executable, str(repository / "configs" / "hosts" / "matgl_training.py"), str(data), "--epochs", "2"]
    run = subprocess.run(
        [*command, "--units", "8", "--cutoff", "3.0"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    potential = load(tmp_path / "trained.ff").potential
    assert set(potential.reference_energies) == {1, 8}
    oxygen = mixed()[0].replace(numbers=torch.full((6,), 8), total_charge=torch.zeros(1)).to(dtype=potential.dtype)
    found = potential.predict(potential.add_neighbors(oxygen))
    assert found.long_range_energy.abs() > 0
    assert found.forces.isfinite().all()
    with importing():
        native = matgl.load_model(tmp_path / "trained-matgl")
    again = potential_of(native)
    for name, weight in potential.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], weight)
