"""Fit the constants of the cost model by which ``method="auto"`` chooses, and tell how often it chooses the fastest.

    python -m benchmarks.cost_model [--repeat 3] [--seconds 0.15] [--json FILE]

Water in bulk, as a slab and as a droplet, of 96 to 6144 atoms, at accuracies of 10⁻³, 10⁻⁴ and 10⁻⁶, with charges
alone, with dipoles, and with dipoles and quadrupoles: energy and forces in float64 on one thread with a plan that is
kept, by the open sum, Ewald and the mesh. Sums that the present model thinks to take longer than ``--seconds`` are left
out. The constants come from a least-squares fit of relative errors under the condition that none is negative; they
belong into `farfield.electrostatics.cost`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics import cost
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.plan import EwaldGroup, MeshGroup
from farfield.electrostatics.spreading import LEAST_COMPILED

sys.path.insert(0, str(Path(__file__).parent))
from electrostatics import higher_multipoles, water_box  # noqa: E402

MOLECULES = (32, 64, 128, 256, 512, 1024, 2048)
ACCURACIES = (1e-3, 1e-4, 1e-6)
PERIODIC = {"bulk": (True, True, True), "slab": (True, True, False), "droplet": (False, False, False)}
SETS = {0: "q", 1: "qu", 2: "quQ"}

#: Linear terms of each sum's time, as in `farfield.electrostatics.cost`.
TERMS = {
    "open": ("pairs", "call"),
    "ewald": ("atom waves", "waves", "call"),
    "mesh": ("rows of stencils", "points log2 points", "call"),
}


def terms_of(group: Any, atoms: int, degree: int) -> tuple[str, list[float], float]:
    """Name of a sum, its terms, and what the present constants make of them (s)."""
    if isinstance(group, EwaldGroup):
        waves = cost.waves_of(group.ranges[degree])
        return "ewald", [atoms * waves, waves, 1.0], cost.ewald_cost(atoms, group.ranges[degree], degree) * 1e-9
    if isinstance(group, MeshGroup):
        shape, order = group.shapes[degree], group.orders[degree]
        points = math.prod(shape)
        terms = [atoms * float(order**2), points * math.log2(points), 1.0]
        return "mesh", terms, cost.mesh_cost(atoms, shape, order, degree) * 1e-9
    return "open", [float(atoms**2), 1.0], cost.open_cost(atoms, degree) * 1e-9


def seconds_of(coulomb: Coulomb, batch: AtomicBatch, multipoles: Multipoles, plan: Any, repeat: int) -> float:
    """Median time of energy and forces."""

    def run() -> None:
        positions = batch.positions.clone().requires_grad_()
        energy = coulomb(batch.replace(positions=positions), multipoles, plan, outputs="energy").energy
        torch.autograd.grad(energy.sum(), positions)

    run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(repeat: int, limit: float) -> list[dict[str, Any]]:
    """Time every sum of every system: one entry for each system, accuracy and set of multipoles."""
    cases = []
    for kind, molecules in itertools.product(PERIODIC, MOLECULES):
        batch, charges = water_box(molecules, 1)
        batch = batch.replace(pbc=torch.tensor([PERIODIC[kind]]))
        dipoles, quadrupoles = higher_multipoles(batch.n_atoms)
        for accuracy, degree in itertools.product(ACCURACIES, SETS):
            multipoles = Multipoles(charges, *(dipoles, quadrupoles)[:degree])
            sums = {}
            for method in ("open", "ewald", "mesh"):
                too_small = method == "mesh" and batch.n_atoms < LEAST_COMPILED  # summed in another, slower way
                if too_small or (method == "open" and kind != "droplet"):
                    continue
                coulomb = Coulomb(accuracy=accuracy, method=method)
                plan = coulomb.prepare(batch)
                _, terms, present = terms_of(plan.groups[0], batch.n_atoms, degree)
                if present < limit:
                    taken = seconds_of(coulomb, batch, multipoles, plan, repeat)
                    sums[method] = {"terms": terms, "seconds": taken, "present": present}
            chosen = terms_of(Coulomb(accuracy=accuracy).prepare(batch, degree).groups[0], batch.n_atoms, degree)[0]
            case = {"kind": kind, "atoms": batch.n_atoms, "accuracy": accuracy, "set": SETS[degree], "sums": sums}
            cases.append({**case, "chosen": chosen})
            shown = "  ".join(f"{name} {one['seconds'] * 1e3:8.2f} ms" for name, one in sums.items())
            print(f"{kind:8s}{batch.n_atoms:6d} {accuracy:.0e} {SETS[degree]:4s} {shown}  -> {chosen}", flush=True)
    return cases


def fit(cases: list[dict[str, Any]]) -> None:
    """Print the constants (ns) of every sum and set, and by what factor the fitted times err."""
    print("\nconstants (ns)")
    for method, labels in TERMS.items():
        for name in SETS.values():
            found = [case["sums"][method] for case in cases if case["set"] == name and method in case["sums"]]
            if not found:
                continue
            seconds = np.array([one["seconds"] for one in found])
            terms = np.array([one["terms"] for one in found])
            constants, _ = nnls(terms * 1e-9 / seconds[:, None], np.ones(len(found)))
            errors = np.exp(np.abs(np.log(terms @ constants * 1e-9 / seconds)))
            values = ", ".join(f"{label} {value:.3g}" for label, value in zip(labels, constants, strict=True))
            print(f"{method:6s}{name:4s} {values}   off by {np.median(errors):.2f} (median), {errors.max():.2f} (most)")


def judge(cases: list[dict[str, Any]]) -> None:
    """Print how often what ``auto`` chose was the fastest, and what it lost where it was not."""
    print("\nchoice")
    for kind, name in itertools.product(PERIODIC, SETS.values()):
        losses = []
        for case in cases:
            seconds = {method: one["seconds"] for method, one in case["sums"].items()}
            if (case["kind"], case["set"]) == (kind, name) and len(seconds) > 1 and case["chosen"] in seconds:
                losses.append(seconds[case["chosen"]] / min(seconds.values()) - 1.0)
        if losses:
            right = sum(loss == 0.0 for loss in losses)
            lost = f"mean loss {np.mean(losses):.1%}, largest {max(losses):.1%}"
            print(f"{kind:8s}{name:4s} fastest in {right} of {len(losses)}; {lost}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.15, help="leave out sums expected to take longer")
    parser.add_argument("--json", type=Path, help="write all times there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cases = measure(options.repeat, options.seconds)
    fit(cases)
    judge(cases)
    if options.json:
        options.json.write_text(json.dumps(cases, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
