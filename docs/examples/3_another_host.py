"""
A far field for another package's model
=======================================

``farfield hosts`` lists the packages whose models `farfield.augment` takes as they are.
For any other model ten lines do: they build its inputs from a batch and hand on its
energy and features. Forces, stress, files, ASE and training follow from these.
"""

import torch
from ase.build import molecule
from torch import Tensor, nn

import farfield as ff
from farfield.hosts.base import HostBackbone
from farfield.potentials.features import Features

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# %%
# Somebody's model
# ----------------
# It has inputs of its own: positions, species, edges, and the shifts of edges across
# the cell. It gives an energy and some invariant features for each atom.


class SomebodysModel(nn.Module):
    def __init__(self, n_species: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.embed = nn.Embedding(n_species, 8)
        self.energy = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 1))

    def forward(
        self, pos: Tensor, species: Tensor, edge_index: Tensor, shifts: Tensor
    ) -> dict[str, Tensor]:
        i, j = edge_index
        r = (pos[j] - pos[i] + shifts).norm(dim=-1)
        smooth = 0.5 * (1 + torch.cos(torch.pi * r / self.cutoff))
        message = smooth[:, None] * self.embed(species[j])
        features = self.embed(species).index_add(0, i, message)
        return {"node_energy": self.energy(features)[:, 0], "node_feats": features}


# %%
# The ten lines
# -------------
# `HostBackbone` finds edges and species. What matters: the host gets
# ``batch.positions`` and ``edges.shifts``, which depend on the cell, and is asked for
# no forces. These are made of the whole energy afterwards, so that they are exact.
# Arguments beside elements and cutoff, for model files, go to ``self._config``.


class SomebodysBackbone(HostBackbone):
    n_scalars, n_vectors, n_tensors = 8, 0, 0

    def __init__(self, elements: list[int], cutoff: float) -> None:
        super().__init__(elements, cutoff)
        self.host = SomebodysModel(len(elements), cutoff)
        self.receptive_radius = cutoff  # times the number of layers

    def forward(self, batch: ff.AtomicBatch) -> Features:
        edges = self.edges(batch)
        pairs = torch.stack([edges.i, edges.j])
        out = self.host(batch.positions, self.species(batch), pairs, edges.shifts)
        energy = batch.sum_over_atoms(out["node_energy"])
        return Features(energy=energy, scalars=out["node_feats"])


# %%
# The far field
# -------------
# It has no vectors, so that dipoles are made from bonds (``bond_cutoff``).

backbone = SomebodysBackbone(elements=[1, 6, 8], cutoff=4.0)
potential = ff.augment(backbone, dipoles=True, bond_cutoff=4.0)

atoms = molecule("CH3CHO")
atoms.calc = ff.Calculator(potential)
print(f"energy {atoms.get_potential_energy():.4f} eV, dipole {atoms.get_dipole_moment()}")

# %%
# Forces are the slope of the energy, far field included.

forces, step = atoms.get_forces(), 1e-4
energies = []
for sign in (1, -1):
    atoms.positions[0, 0] += sign * step
    energies.append(atoms.get_potential_energy())
    atoms.positions[0, 0] -= sign * step
slope = (energies[0] - energies[1]) / (2 * step)
print(f"force {forces[0, 0]:.8f}, by differences {-slope:.8f} eV/Å")

# %%
# To train it by ``farfield train`` and to load its model files, give it a name in the
# metadata of the package that holds it, and use that as ``kind``:
#
# .. code-block:: toml
#
#    [project.entry-points."farfield.backbones"]
#    somebodys = "my_package:SomebodysBackbone"
#
# .. code-block:: yaml
#
#    model:
#      backbone: {kind: somebodys, cutoff: 4.0}
#      long_range: {dipoles: true, bond_cutoff: 4.0}
