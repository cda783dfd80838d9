"""Whether the forces that a model leaves have anything of a far field in them, before one is trained.

    python -m benchmarks.residual MODEL DATA --charges Na=1 Cl=-1 [--last 20] [--smearing 1 2 3 4] [--json FILE]

What is left, label less model, is fitted by q² times the forces of the elements' charges, for one smearing after
another: with the wider ones only waves are left that are longer than any short range. A model that lacks the far field
of ions with Born charges Z* in a medium of ε∞ leaves q² = Z*²/ε∞ there, times the square of the charges given; one
that has it already, since it sees the whole cell, leaves nothing. RMS in meV/Å.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from ase.data import atomic_numbers
from benchmarks.results import Row, gather

from farfield.atoms.batch import concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.evaluation.evaluate import evaluate
from farfield.evaluation.reading import read_labelled


def left_over(
    model: str, data: str, last: int | None, charges: dict[int, float], smearings: list[float]
) -> dict[str, Row]:
    """Fit what a model leaves of the forces, a row for each smearing."""
    labelled = read_labelled(data, last=last)
    # frame by frame: a host with a wide receptive field needs the memory
    forces = evaluate(model, labelled, quantities=["forces"], atoms_per_batch=1).comparisons["forces"]
    left = torch.from_numpy(forces.reference - forces.predicted)
    batch = concatenate([sample.batch for sample in labelled])
    table = torch.zeros(119, dtype=torch.float64)
    for number, charge in charges.items():
        table[number] = charge
    rows = {}
    for smearing in smearings:
        moved = batch.replace(positions=batch.positions.clone().requires_grad_())
        energy = Coulomb(smearing=smearing)(moved, Multipoles(table[batch.numbers])).energy.sum()
        far = -1e3 * torch.autograd.grad(energy, moved.positions)[0]
        q2 = float((left * far).sum() / far.square().sum())
        parts = {"left": left, "far": far, "left_after": left - q2 * far}
        rows[f"{smearing:g} Å"] = {"q2": q2} | {key: float(part.square().mean().sqrt()) for key, part in parts.items()}
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", help="registry name or path, with forces")
    parser.add_argument("--charges", nargs="+", required=True, metavar="ELEMENT=CHARGE")
    parser.add_argument("--last", type=int, help="only so many frames from the end")
    parser.add_argument("--smearing", nargs="+", type=float, default=[1.0, 2.0, 3.0, 4.0], metavar="Å")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    pairs = (pair.split("=") for pair in options.charges)
    charges = {atomic_numbers[element]: float(charge) for element, charge in pairs}
    rows = left_over(options.model, options.data, options.last, charges, options.smearing)
    gather([(options.model, name, lambda row=row: row) for name, row in rows.items()], options.json)


if __name__ == "__main__":
    main()
