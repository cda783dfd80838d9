"""Compare a host's own training step with that of its adapter, alone and with a far field, on 64 water molecules.

    python benchmarks/host_cost.py nequip [--repeat 5] [--layers 3]

A step is energies and forces of one box of 192 atoms (random, from a seed; no time depends on labels), the loss, its
backward pass through the forces, and Adam. The own step takes forces (and, where that is not an option, the virial) by
the host's means, of the very module that the adapter runs; stresses are in no loss. Graphs that a host makes once for a
structure, not in every step, are made before. Steps alternate within one process and thread; what counts is its CPU
time, so that other programs matter little. Medians, and ratios to the host's own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import electrostatics
import torch
from torch import Tensor, nn

from farfield import augment
from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import find_neighbors
from farfield.hosts.registry import adapter
from farfield.potentials.augmented import AugmentedPotential

CUTOFF = 4.0
Outputs = tuple[Tensor, Tensor]


def settings_of(host: str, layers: int) -> dict[str, Any]:
    """Arguments of an adapter: 32 channels of scalars and of vectors, or what comes near."""
    return {
        "mace": {"hidden_irreps": "32x0e+32x1o", "num_interactions": layers},
        "nequip": {"num_features": 32, "l_max": 1, "parity": False, "num_layers": layers, "radial_mlp_width": 64},
        "allegro": {"num_scalar_features": 64, "num_tensor_features": 32, "l_max": 1, "num_layers": layers},
        "chgnet": {"n_conv": layers, "atom_fea_dim": 32, "bond_fea_dim": 32, "angle_fea_dim": 32},
        "matgl": {"architecture": "TensorNet", "units": 32, "nblocks": layers - 1},
    }[host]


def by_nequip(backbone: Any, batch: AtomicBatch) -> Callable[[], Outputs]:
    from nequip.nn import ForceStressOutput

    own, pairs = ForceStressOutput(backbone.host).train(), batch.neighbors
    data = {
        "pos": batch.positions, "cell": batch.cell, "edge_index": torch.stack([pairs.i, pairs.j]),
        "edge_cell_shift": pairs.shifts.to(batch.cell.dtype), "atom_types": backbone.species(batch),
        "batch": batch.system, "num_atoms": batch.counts,
    }  # fmt: skip

    def run() -> Outputs:
        out = own(dict(data))
        return out["total_energy"][:, 0], out["forces"]

    return run


def by_mace(backbone: Any, batch: AtomicBatch) -> Callable[[], Outputs]:
    edges = backbone.edges(batch)
    data = {
        "positions": batch.positions.clone(), "cell": batch.cell.reshape(-1, 3), "shifts": edges.shifts,
        "node_attrs": nn.functional.one_hot(backbone.species(batch), len(backbone.elements)).to(batch.positions.dtype),
        "edge_index": torch.stack([edges.i, edges.j]), "unit_shifts": batch.neighbors.shifts.to(batch.cell.dtype),
        "batch": batch.system, "ptr": torch.tensor([0, batch.n_atoms]), "head": torch.zeros(1, dtype=torch.int64),
    }  # fmt: skip

    def run() -> Outputs:
        out = backbone.host(dict(data), training=True)
        return out["energy"], out["forces"]

    return run


def by_chgnet(backbone: Any, batch: AtomicBatch) -> Callable[[], Outputs]:
    from chgnet.graph import CrystalGraphConverter
    from pymatgen.core import Structure

    model = backbone.host
    positions = batch.positions.double().numpy()
    structure = Structure(batch.cell[0].double().numpy(), batch.numbers.tolist(), positions, coords_are_cartesian=True)
    cutoffs = {key: model.model_args[key] for key in ("atom_graph_cutoff", "bond_graph_cutoff")}
    graph = CrystalGraphConverter(**cutoffs)(structure)

    def run() -> Outputs:
        out = model([graph], task="ef")
        return out["e"], out["f"][0]

    return run


def by_matgl(backbone: Any, batch: AtomicBatch) -> Callable[[], Outputs]:
    from matgl.apps.pes import Potential
    from torch_geometric.data import Batch, Data

    own, pairs = Potential(backbone.host, calc_stresses=False).train(), batch.neighbors
    graph = Data(
        node_type=backbone.species(batch), edge_index=torch.stack([pairs.i, pairs.j]),
        pbc_offset=pairs.shifts.to(batch.cell.dtype), frac_coords=batch.positions @ torch.linalg.inv(batch.cell[0]),
        num_nodes=batch.n_atoms,
    )  # fmt: skip
    graphs = Batch.from_data_list([graph])

    def run() -> Outputs:
        energy, forces, *_ = own(graphs, batch.cell)
        return energy, forces

    return run


OWN = {"mace": by_mace, "nequip": by_nequip, "allegro": by_nequip, "chgnet": by_chgnet, "matgl": by_matgl}


class Step:
    """One training step, as often as called; gives its CPU time in ms."""

    def __init__(self, parameters: list[Tensor], run: Callable[[], Outputs]) -> None:
        self.run, self.optimizer = run, torch.optim.Adam(parameters, lr=1e-5)

    def __call__(self) -> float:
        start = time.process_time()
        self.optimizer.zero_grad(set_to_none=True)
        energy, forces = self.run()
        (energy.double().square().sum() + forces.square().mean()).backward()
        self.optimizer.step()
        return 1e3 * (time.process_time() - start)


def by_farfield(potential: AugmentedPotential, batch: AtomicBatch) -> Callable[[], Outputs]:
    def run() -> Outputs:
        out = potential.predict(batch, create_graph=True)
        return out.energy, out.forces

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host", choices=sorted(OWN))
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--layers", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    box, _ = electrostatics.water_box(64, 0)
    numbers = torch.tensor([8, 1, 1] * 64)
    batch = find_neighbors(box.replace(numbers=numbers).to(dtype=torch.float32), CUTOFF)
    backbone = adapter(options.host)([1, 8], CUTOFF, **settings_of(options.host, options.layers)).float()
    backbone.calibrate(batch)
    bonds = None if backbone.n_vectors else CUTOFF
    potentials = {
        "adapter": AugmentedPotential(backbone),
        "adapter + charges": augment(backbone),
        "adapter + charges, dipoles": augment(backbone, dipoles=True, bond_cutoff=bonds),
    }
    steps = {"own": Step(list(backbone.parameters()), OWN[options.host](backbone, batch))}
    for name, potential in potentials.items():
        steps[name] = Step(list(potential.parameters()), by_farfield(potential, batch))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(options.repeat + 1):
        for name, step in steps.items():
            spent = step()
            if round_:  # the first pays for what is made once
                times[name].append(spent)
    own = statistics.median(times["own"])
    weights = sum(p.numel() for p in backbone.parameters())
    print(f"{options.host}, {weights} weights, {len(batch.neighbors.i)} edges; CPU time of a step, one thread")
    for name, found in times.items():
        spent = statistics.median(found)
        print(f"{name:28s} {spent:8.0f} ms  {spent / own:6.3f}  ({min(found):.0f} to {max(found):.0f})")


if __name__ == "__main__":
    main()
