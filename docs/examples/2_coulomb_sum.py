"""
The Coulomb sum alone
=====================

`Coulomb` needs no learning: give it atoms and charges, and it returns energy, potential,
field and field gradient. Here it gives Madelung constants, and derivatives by autograd.
"""

import torch

import farfield as ff
from farfield.units import COULOMB_CONSTANT

torch.set_default_dtype(torch.float64)

# %%
# Two crystals in one batch
# -------------------------
# Rock salt and caesium chloride, with unit charges and a nearest-neighbour distance
# of 3 Å. Their atoms are laid end to end; ``system`` tells which atom belongs to
# which.

distance = 3.0
salt_cell = distance * torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0], [1.0, 1.0, 0.0]])
caesium_cell = 2 * distance / 3**0.5 * torch.eye(3)
centres = [salt_cell.sum(0, keepdim=True) / 2, caesium_cell.sum(0, keepdim=True) / 2]
batch = ff.AtomicBatch(
    positions=torch.cat([torch.zeros(1, 3), centres[0], torch.zeros(1, 3), centres[1]]),
    numbers=torch.tensor([11, 17, 55, 17]),
    cell=torch.stack([salt_cell, caesium_cell]),
    pbc=torch.ones(2, 3, dtype=torch.bool),
    system=torch.tensor([0, 0, 1, 1]),
)
charges = torch.tensor([1.0, -1.0, 1.0, -1.0])

# %%
# farfield's charges are Gaussians. With a width far below the distance of the atoms
# they act as points.

coulomb = ff.Coulomb(smearing=0.3, accuracy=1e-8)
result = coulomb(batch, ff.Multipoles(charges))
madelung = -result.energy * distance / COULOMB_CONSTANT
for name, value, known in zip(
    ["NaCl", "CsCl"], madelung.tolist(), [1.747564594633, 1.762674773070], strict=True
):
    print(f"{name}: Madelung constant {value:.9f}, literature {known:.9f}")

# %%
# Everything is differentiable
# ----------------------------
# The potential is the derivative of the energy in the charges, and the forces are
# minus that in the positions.

leaf = charges.clone().requires_grad_()
moved = batch.replace(
    positions=(batch.positions + 0.1 * torch.randn(4, 3)).requires_grad_()
)
result = coulomb(moved, ff.Multipoles(leaf))
potential, gradient = torch.autograd.grad(result.energy.sum(), [leaf, moved.positions])
print(
    "potential at the atoms (V):",
    [round(value, 4) for value in result.potential.tolist()],
)
print("largest difference from dE/dq:", (potential - result.potential).abs().max().item())
print(
    "sum of forces (eV/Å):", [round(value, 12) for value in (-gradient).sum(0).tolist()]
)
