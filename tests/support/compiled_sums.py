"""Compare compiled sums with eager ones, in a process without shape checks: those are no part of the library, and the
compiler cannot trace them.

    python compiled_sums.py

prints, as JSON, for each case the largest difference in energy and gradients, or what went wrong.
"""  # noqa: D205

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch
from electrostatic_systems import TRICLINIC, parts, random_multipoles, random_system
from torch import Tensor

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles

BULK, SLAB, WIRE, CLUSTER = (True,) * 3, (True, False, True), (False, True, False), (False,) * 3


def system(atoms: int, pbc: tuple[bool, ...], seed: int = 0) -> AtomicBatch:
    """Make a system of a few atoms."""
    return random_system(atoms, TRICLINIC, seed=seed).replace(pbc=torch.tensor([pbc]))


def mixed() -> AtomicBatch:
    """Make an open system and one periodic along all axes."""
    return concatenate([system(3, CLUSTER), system(4, BULK, 1)])


#: Systems, order of the multipoles, options of the solver, outputs.
CASES: dict[str, tuple[Callable[[], AtomicBatch], int, dict[str, Any], str]] = {
    "open and Ewald, charges": (mixed, 0, {}, "energy"),
    "open, all multipoles": (lambda: system(4, CLUSTER), 2, {}, "all"),
    "wire, dipoles": (lambda: system(3, WIRE), 1, {"background": "point"}, "energy"),
    "mesh, all multipoles": (lambda: system(4, BULK), 2, {"method": "mesh", "background": "point"}, "energy"),
    "mesh of a slab, potential": (lambda: system(4, SLAB), 0, {"method": "mesh", "self_interaction": True}, "all"),
}


def difference(case: str, backend: str) -> float:
    """Largest difference of energies and their gradients, for two cells on one graph."""
    make, order, options, outputs = CASES[case]
    batch = make()
    multipoles, coulomb = random_multipoles(batch.n_atoms, order), Coulomb(accuracy=1e-3, **options)
    plan = coulomb.prepare(batch)

    def energy(positions: Tensor, cell: Tensor, *given: Tensor) -> Tensor:
        moved = batch.replace(positions=positions, cell=cell)
        return coulomb(moved, Multipoles(*given), plan=plan, outputs=outputs).energy

    compiled = torch.compile(energy, fullgraph=True, backend=backend)
    largest = 0.0
    for scale in (1.0, 1.01):
        leaves = [t.clone().requires_grad_() for t in (batch.positions * scale, batch.cell * scale, *parts(multipoles))]
        outcomes = []
        for function in (compiled, energy):
            found = function(*leaves)
            slopes = torch.autograd.grad((found**2).sum(), leaves, allow_unused=True)
            outcomes.append([found.detach(), *(slope for slope in slopes if slope is not None)])
        for one, other in zip(*outcomes, strict=True):
            largest = max(largest, float((one - other).abs().max() / (1.0 + other.abs().max())))
    return largest


def main() -> None:
    torch.set_num_threads(1)
    backend = sys.argv[1] if len(sys.argv) > 1 else "aot_eager"
    found: dict[str, float | str] = {}
    for case in CASES:
        try:
            found[case] = difference(case, backend)
        except Exception:
            found[case] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
