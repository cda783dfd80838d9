"""Stress and smoothness of the sum under strain, beside the plain baseline cut off as the published code does.

    python benchmarks/strain_scan.py [--accuracy 1e-4] [--points 401] [--seed 0]

A box of 64 water molecules with the charges of SPC/E is scaled from −1 to +1 % in every direction. The baseline ends
its sum sharply at |k| ≤ 2π/dl with dl = 2 Å, that is π/Å at σ = 1 Å, and finds its waves anew for each cell; farfield
prepares anew for each cell. Of both:

* stress: relative error of dE/dstrain (all nine components) at the ends and the middle of the scan, against farfield at
  accuracy 1e-10;
* jump: largest change of the energy from one point to the next that its own slope does not explain, ΔE − ½(E'+E'')Δ,
  per atom;
* shells: how often the set of waves inside the cutoff changes along the scan.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import plain_baseline
import torch
from electrostatics import water_box
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles

PUBLISHED_CUTOFF = 2.0 * math.pi / 2.0

#: Energy of positions and a cell.
Energy = Callable[[Tensor, Tensor], Tensor]


def strained(energy: Energy, batch: AtomicBatch, strain: float) -> tuple[float, Tensor]:
    """Energy (eV) of the scaled box and its derivative in a strain (eV), shape (3, 3)."""
    more = torch.zeros(3, 3, dtype=batch.positions.dtype, requires_grad=True)
    scale = (1.0 + strain) * (torch.eye(3, dtype=batch.positions.dtype) + more)
    total = energy(batch.positions @ scale, batch.cell[0] @ scale)
    return float(total.detach()), torch.autograd.grad(total, more)[0]


def farfield_energy(batch: AtomicBatch, charges: Tensor, accuracy: float) -> Energy:
    coulomb = Coulomb(accuracy=accuracy)

    def energy(positions: Tensor, cell: Tensor) -> Tensor:
        moved = batch.replace(positions=positions, cell=cell[None])
        return coulomb(moved, Multipoles(charges), coulomb.prepare(moved), outputs="energy").energy[0]

    return energy


def plain_energy(charges: Tensor) -> Energy:
    def energy(positions: Tensor, cell: Tensor) -> Tensor:
        total = plain_baseline.ewald_energy(positions, cell, charges, None, None, PUBLISHED_CUTOFF)
        return total - plain_baseline.self_energy(charges, None, None)

    return energy


def waves_inside(cell: Tensor, cutoff: float) -> int:
    return len(plain_baseline.reciprocal_vectors(cell, cutoff))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--accuracy", type=float, default=1e-4)
    parser.add_argument("--points", type=int, default=401)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batch, charges = water_box(64, options.seed)
    strains = torch.linspace(-0.01, 0.01, options.points, dtype=torch.float64).tolist()
    probes = [strains[0], 0.0, strains[-1]]
    exact = [strained(farfield_energy(batch, charges, 1e-10), batch, strain)[1] for strain in probes]
    ours = Coulomb(accuracy=options.accuracy).prepare(batch).groups[0]
    print(f"{batch.n_atoms} atoms, strain ±1 %, {options.points} points")
    print("| sum | k cutoff (1/Å) | shells | stress error | largest jump (meV/atom) |")
    print("|---|---|---|---|---|")
    for name, energy, cutoff in (
        (f"farfield, accuracy {options.accuracy:g}", farfield_energy(batch, charges, options.accuracy), ours.cutoffs),
        ("plain, as published", plain_energy(charges), PUBLISHED_CUTOFF),
    ):
        cutoff = float(cutoff[0, 0]) if isinstance(cutoff, Tensor) else cutoff
        found = [strained(energy, batch, strain)[1] for strain in probes]
        errors = [float((f - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True)]
        scan = [strained(energy, batch, strain) for strain in strains]
        energies = torch.tensor([value for value, _ in scan], dtype=torch.float64)
        # `more` scales the strained box once again: dE/dε = tr(dE/dmore)/(1 + ε).
        slopes = torch.stack([slope.trace() for _, slope in scan]) / (1.0 + torch.tensor(strains, dtype=torch.float64))
        step = strains[1] - strains[0]
        jumps = energies.diff() - 0.5 * step * (slopes[1:] + slopes[:-1])
        counts = [waves_inside(batch.cell[0] * (1.0 + strain), cutoff) for strain in strains]
        shells = sum(a != b for a, b in zip(counts[:-1], counts[1:], strict=True))
        print(
            f"| {name} | {cutoff:.2f} | {shells} | {100.0 * min(errors):.2g}–{100.0 * max(errors):.2g} % "
            f"| {1e3 * float(jumps.abs().max()) / batch.n_atoms:.2g} |"
        )


if __name__ == "__main__":
    main()
