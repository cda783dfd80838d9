"""Time and memory of the long-range sum from a hundred to a million atoms, beside other codes and the floor.

    python -m benchmarks.scaling [--sizes 1000,10000,100000] [--solvers farfield,ewald,torch-pme,nvalchemi,plain,floor]
        [--quantity forces,training] [--dtype float64] [--multipoles q] [--accuracy 3e-4] [--threads 2] [--repeat 5]
        [--device cpu] [--json FILE] [--figure FILE]

Boxes of water at 1 g/cm³ with SPC/E charges (and random dipoles and quadrupoles with --multipoles quQ). ``forces`` is
energy and forces, ``training`` the gradient of a loss on forces in positions and charges. Every peer sums the same
Gaussian charges (σ = 1 Å, reciprocal part alone) at the coarsest setting whose measured force error is at most the
accuracy (above 3000 atoms the search starts at what a small box needs); the error is against Ewald at 10⁻⁸ for up to
3000 atoms and otherwise against a mesh at 10⁻⁷, in float64.
``plain`` is the published way to sum (benchmarks/plain_baseline.py). ``floor`` is one pair of real Fourier transforms
of farfield's mesh and one pass over the stencils of the atoms. Each case runs in a process of its own, so that peak
memory is its own: of the process, or, with ``--device cuda``, what torch allocates on the device. What cannot run, as
it is not installed or needs more memory than there is, and what fails, is reported in place of its line and in the
figure.

The list of all lines goes to the file after --json, and a figure beside it, of the same name with .png, or to the file
after --figure.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import math
import multiprocessing
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farfield.atoms.batch import AtomicBatch
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.units import COULOMB_CONSTANT

# The other benchmarks are scripts: they are found beside this one, whether it is run as a script or as a module.
sys.path.insert(0, str(Path(__file__).parent))
from electrostatics import higher_multipoles, water_box  # noqa: E402
from plain_baseline import ewald_energy  # noqa: E402

SOLVERS = ("farfield", "ewald", "torch-pme", "nvalchemi", "plain", "floor")

#: Multipoles by name, in the order of the highest.
MULTIPOLES = ("q", "qu", "quQ")

#: Boxes up to this size have errors against Ewald, and each setting of a peer is tried.
SMALL = 3000

#: Atoms of water (Å⁻³).
DENSITY = 3.0 / 29.92

#: The plain sum keeps tables of atoms × waves: so many for each quantity (from its peak of memory at 2000 atoms), of
#: the waves inside this cutoff (Å⁻¹, that of an accuracy of 3·10⁻⁴), in this share of the memory at most.
PLAIN_TABLES = {"forces": 6, "training": 10}
PLAIN_CUTOFF = 4.25
PLAIN_SHARE = 0.7


def make_system(atoms: int, order: int) -> tuple[AtomicBatch, Multipoles]:
    """Water of about so many atoms."""
    batch, charges = water_box(max(1, round(atoms / 3)), seed=1)
    dipoles, quadrupoles = higher_multipoles(batch.n_atoms)
    return batch, Multipoles(charges, dipoles if order > 0 else None, quadrupoles if order > 1 else None)


Energy = Callable[[Tensor, list[Tensor]], Tensor]


def farfield_energy(batch: AtomicBatch, accuracy: float, method: str) -> Energy:
    """Our sum, with a plan made once, as in molecular dynamics."""
    coulomb = Coulomb(accuracy=accuracy, method=method)
    plan = coulomb.prepare(batch)

    def energy(positions: Tensor, parts: list[Tensor]) -> Tensor:
        return coulomb(batch.replace(positions=positions), Multipoles(*parts), plan, outputs="energy").energy.sum()

    return energy


def torch_pme_energy(batch: AtomicBatch, spacing: float) -> Energy:
    """Reciprocal part of torch-pme's P3M, without neighbours: the Gaussian charges alone."""
    import torchpme

    law = torchpme.CoulombPotential(smearing=1.0, prefactor=COULOMB_CONSTANT)
    peer = torchpme.P3MCalculator(law, mesh_spacing=spacing, interpolation_nodes=5).to(
        device=batch.positions.device, dtype=batch.positions.dtype
    )
    none = torch.zeros(0, 2, dtype=torch.int64, device=batch.positions.device)

    def energy(positions: Tensor, parts: list[Tensor]) -> Tensor:
        potential = peer.forward(
            charges=parts[0][:, None],
            cell=batch.cell[0],
            positions=positions,
            neighbor_indices=none,
            neighbor_distances=positions.new_zeros(0),
        )
        return (potential[:, 0] * parts[0]).sum()

    return energy


def even_dimensions(batch: AtomicBatch, spacing: float) -> tuple[int, int, int]:
    """Even numbers of mesh points, at most so far apart."""
    first, second, third = (2 * math.ceil(length / spacing / 2) for length in batch.cell[0].norm(dim=1).tolist())
    return first, second, third


def nvalchemi_energy(batch: AtomicBatch, spacing: float) -> Energy:
    """Reciprocal part of nvalchemi-toolkit-ops' particle mesh (k_e = 1 there)."""
    from nvalchemiops.torch.interactions.electrostatics import pme_reciprocal_space

    dimensions = even_dimensions(batch, spacing)

    def energy(positions: Tensor, parts: list[Tensor]) -> Tensor:
        energies = pme_reciprocal_space(
            positions,
            parts[0],
            batch.cell,
            alpha=math.sqrt(0.5),
            mesh_dimensions=dimensions,
            spline_order=5,
        )
        return COULOMB_CONSTANT * energies.sum()

    return energy


def nvalchemi_multipole_energy(batch: AtomicBatch, spacing: float) -> Energy:
    """Reciprocal part of nvalchemi-toolkit-ops' particle mesh of Gaussian multipoles.

    Its Gaussians and its splitting are one here, as what is between them is the real-space part: e^{−σ²k²/2} of ours is
    e^{−s²k² − k²/4α²} of its.
    """
    from nvalchemiops.torch.interactions.electrostatics import pack_multipole_moments
    from nvalchemiops.torch.interactions.electrostatics.pme_multipole import multipole_pme_reciprocal_space

    dimensions = even_dimensions(batch, spacing)

    def energy(positions: Tensor, parts: list[Tensor]) -> Tensor:
        return multipole_pme_reciprocal_space(
            positions,
            pack_multipole_moments(*parts),
            batch.cell[0],
            sigma=0.5,
            alpha=1.0,
            mesh_dimensions=dimensions,
            spline_order=5,
        ).sum()

    return energy


def plain_energy(batch: AtomicBatch, k_cutoff: float) -> Energy:
    """Sum the published way: dense tables of cosines and sines."""

    def energy(positions: Tensor, parts: list[Tensor]) -> Tensor:
        u, t = (parts[index] if len(parts) > index else None for index in (1, 2))
        return ewald_energy(positions, batch.cell[0], parts[0], u, t, k_cutoff)

    return energy


def find_forces(energy: Energy, batch: AtomicBatch, multipoles: Multipoles) -> Tensor:
    """Find the forces of an energy."""
    positions = batch.positions.detach().clone().requires_grad_()
    return -torch.autograd.grad(energy(positions, given(multipoles)), positions)[0].detach()


def given(multipoles: Multipoles) -> list[Tensor]:
    """Multipoles that there are."""
    return [m for m in (multipoles.charges, multipoles.dipoles, multipoles.quadrupoles) if m is not None]


def coarsest(make: Callable[[float], Energy], settings: list[float], error: Callable[[Energy], float], goal: float):  # type: ignore[no-untyped-def]  # noqa: E501
    """First of the settings, from coarse to fine, that reaches the goal, else the last: energy and error."""
    for setting in settings:
        energy = make(setting)
        reached = error(energy)
        if reached <= goal:
            break
    return energy, reached


def work_of(energy: Energy, batch: AtomicBatch, multipoles: Multipoles, quantity: str) -> Callable[[], object]:
    """One evaluation: energy and forces, or the gradient of a loss on forces."""
    positions = batch.positions.detach().clone().requires_grad_()
    parts = [m.detach().clone().requires_grad_(quantity == "training") for m in given(multipoles)]

    def forces() -> object:
        return torch.autograd.grad(energy(positions, parts), positions)

    def training() -> object:
        total = energy(positions, parts)
        (slope,) = torch.autograd.grad(total, positions, create_graph=True)
        return torch.autograd.grad(slope.square().sum() + total.square(), [positions, *parts])

    return forces if quantity == "forces" else training


def floor_work(batch: AtomicBatch, multipoles: Multipoles, accuracy: float) -> Callable[[], object]:
    """One pair of transforms of farfield's mesh, and one spreading of the atoms."""
    from farfield.electrostatics.mesh import inverse_transform, transform
    from farfield.electrostatics.spreading import Stencil, count_of, spread

    degree, positions = len(given(multipoles)) - 1, batch.positions
    group = Coulomb(accuracy=accuracy, method="mesh").prepare(batch).groups[0]
    shape, order = group.shapes[degree], group.orders[degree]  # type: ignore[union-attr]
    points = torch.tensor(shape, dtype=torch.float64, device=positions.device)
    u = (positions.double() @ torch.linalg.inv(batch.cell[0].double()) % 1.0) * points
    coefficients = torch.randn(batch.n_atoms, count_of(degree), dtype=positions.dtype, device=positions.device)
    stencil = Stencil(u, shape, order)

    def work() -> object:
        mesh = spread(u, coefficients, stencil, degree)
        return inverse_transform(transform(mesh), mesh.shape[2], overwrite=True)

    return work


def moved(batch: AtomicBatch, multipoles: Multipoles, like: dict[str, Any]) -> tuple[AtomicBatch, Multipoles]:
    """Return a system on another device or of another dtype."""
    return batch.to(**like), Multipoles(*(part.to(**like) for part in given(multipoles)))


def exact_forces(batch: AtomicBatch, multipoles: Multipoles) -> Tensor:
    """Find the forces that errors are measured against."""
    reference = farfield_energy(batch, 1e-8 if batch.n_atoms <= SMALL else 1e-7, "auto")
    return find_forces(reference, batch, multipoles)


def build(
    solver: str, batch: AtomicBatch, multipoles: Multipoles, accuracy: float, exact: Tensor | None
) -> tuple[Energy, float]:
    """Energy of a solver that reaches the accuracy, and the force error that it has."""

    def error(energy: Energy) -> float:
        if exact is None:
            return math.nan
        found = find_forces(energy, batch, multipoles)
        return float((found.double() - exact).norm() / exact.norm())

    if solver in ("farfield", "ewald"):
        energy = farfield_energy(batch, accuracy, "auto" if solver == "farfield" else "ewald")
        return energy, error(energy)
    make, settings = peer(solver, multipoles)
    if batch.n_atoms > SMALL:
        settings = settings[small_box_setting(solver, batch, len(given(multipoles)) - 1, accuracy) :]
    return coarsest(lambda setting: make(batch, setting), settings, error, accuracy)


def peer(solver: str, multipoles: Multipoles) -> tuple[Callable[[AtomicBatch, float], Energy], list[float]]:
    """Energy of another code, and its settings from coarse to fine."""
    if solver == "plain":
        return plain_energy, [3.0, 3.25, 3.5, 3.75, 4.0, 4.25, 4.5, 5.0, 5.5]
    if multipoles.dipoles is not None:
        return nvalchemi_multipole_energy, [0.8, 0.6, 0.5, 0.4, 0.35, 0.3, 0.25, 0.2, 0.16]
    return torch_pme_energy if solver == "torch-pme" else nvalchemi_energy, [1.25, 1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]


def small_box_setting(solver: str, batch: AtomicBatch, order: int, accuracy: float) -> int:
    """Place of the first setting that reaches the accuracy in a small box: finding it in a large one takes long."""
    small = moved(*make_system(SMALL // 3, order), {"device": batch.positions.device})
    exact, (make, settings) = exact_forces(*small), peer(solver, small[1])
    small = moved(*small, {"dtype": batch.positions.dtype})
    for place, setting in enumerate(settings):
        found = find_forces(make(small[0], setting), *small)
        if float((found.double() - exact).norm() / exact.norm()) <= accuracy:
            return place
    return len(settings) - 1


def timed(work: Callable[[], object], repeat: int, device: torch.device) -> tuple[float, float]:
    """Median time (s) of some work after a call or two to warm up, and the peak of memory (MB)."""
    on_gpu = device.type == "cuda"
    for _ in range(2 if on_gpu else 1):
        work()
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    if on_gpu:
        return statistics.median(times), torch.cuda.max_memory_allocated(device) / 2.0**20
    return statistics.median(times), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0


def row_of(
    solver: str,
    batch: AtomicBatch,
    multipoles: Multipoles,
    quantity: str,
    accuracy: float,
    repeat: int,
    exact: Tensor | None,
) -> dict[str, Any]:
    """Time one solver for one quantity, in the dtype and on the device of the batch."""
    reached = math.nan
    if solver == "floor":
        work = floor_work(batch, multipoles, accuracy)
    else:
        energy, reached = build(solver, batch, multipoles, accuracy, exact)
        work = work_of(energy, batch, multipoles, quantity)
    median, peak = timed(work, repeat, batch.positions.device)
    return {
        "solver": solver,
        "n_atoms": batch.n_atoms,
        "quantity": quantity,
        "dtype": str(batch.positions.dtype).removeprefix("torch."),
        "device": batch.positions.device.type,
        "multipoles": MULTIPOLES[len(given(multipoles)) - 1],
        "median_s": median,
        "peak_mb": peak,
        "force_error": reached,
    }


def measure(options: dict[str, Any]) -> dict[str, Any]:
    """Time one case; runs in a process of its own."""
    torch.set_num_threads(options["threads"])
    # Freed once, a block of this size makes glibc keep freed memory, as it does in a process that has worked for a
    # while: else some solvers get theirs anew from the system in each call and others not, by what they freed before.
    torch.empty(31 << 20, dtype=torch.uint8)
    system = moved(
        *make_system(options["atoms"], MULTIPOLES.index(options["multipoles"])), {"device": options["device"]}
    )
    exact = exact_forces(*system) if system[0].n_atoms <= options["largest_checked"] else None
    system = moved(*system, {"dtype": getattr(torch, options["dtype"])})
    return row_of(options["solver"], *system, options["quantity"], options["accuracy"], options["repeat"], exact)


def heading() -> str:
    return (
        f"{'solver':10s} {'atoms':>8s} {'quantity':9s} {'dtype':8s} {'median (ms)':>12s} {'peak (MB)':>10s} "
        f"{'force error':>12s}"
    )


def line(row: dict[str, Any]) -> str:
    return (
        f"{row['solver']:10s} {row['n_atoms']:8d} {row['quantity']:9s} {row['dtype']:8s} "
        f"{1e3 * row['median_s']:12.2f} {row['peak_mb']:10.0f} {row['force_error']:12.1e}"
    )


def plain_memory(atoms: int, quantity: str, dtype: str) -> float:
    """Memory (GB) that the plain sum takes for water of so many atoms."""
    waves = atoms / DENSITY * PLAIN_CUTOFF**3 / (12.0 * math.pi**2)
    return PLAIN_TABLES[quantity] * atoms * waves * getattr(torch, dtype).itemsize / 1e9


def missing(solver: str, atoms: int, quantity: str, options: argparse.Namespace) -> str | None:
    """Why a case cannot run here."""
    package = {"torch-pme": "torchpme", "nvalchemi": "nvalchemiops"}.get(solver)
    if package is not None and importlib.util.find_spec(package) is None:
        return f"{package} is not installed: make peers"
    if solver == "torch-pme" and options.multipoles != "q":
        return "charges only"
    if solver == "ewald" and atoms > SMALL:
        return f"left out above {SMALL} atoms: its time grows as N²"
    if solver == "plain":
        needed, there = plain_memory(atoms, quantity, options.dtype), memory_of(options.device)
        if needed > PLAIN_SHARE * there:
            return f"would need {needed:.0f} GB for its tables of atoms × waves; there are {there:.0f} GB"
    return None


def memory_of(device: str) -> float:
    """Memory (GB) of this machine, or of its GPU."""
    if device == "cuda":
        return torch.cuda.get_device_properties(0).total_memory / 1e9
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def run_apart(case: dict[str, Any]) -> dict[str, Any] | str:
    """Outcome of `measure` in a process of its own, or why there is none: the others' results must not be lost."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(measure, case).result()
        except BrokenProcessPool:
            return "failed: its process was killed, as happens when memory runs out"
        except Exception as error:
            return f"failed: {error!r}"[:120]


def draw(rows: list[dict[str, Any]], lost: list[str], path: Path) -> None:
    """Draw time against size, one panel for each quantity, and name what is ``lost``."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    quantities = sorted({row["quantity"] for row in rows})
    figure, axes = plt.subplots(1, len(quantities), figsize=(5.5 * len(quantities), 4.2), squeeze=False)
    for axis, quantity in zip(axes[0], quantities, strict=True):
        for solver in SOLVERS:
            mine = sorted(
                (row["n_atoms"], row["median_s"])
                for row in rows
                if row["solver"] == solver and row["quantity"] == quantity
            )
            if mine:
                style = {"linestyle": "--", "color": "gray"} if solver == "floor" else {"marker": "o"}
                axis.loglog(*zip(*mine, strict=True), label=solver, **style)
        axis.set(xlabel="atoms", ylabel="time (s)", title=quantity)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    if lost:
        figure.text(0.01, -0.01, "not measured:\n" + "\n".join(lost), va="top", fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1000,10000,100000")
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--quantity", default="forces,training")
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64"))
    parser.add_argument("--multipoles", default="q", choices=MULTIPOLES)
    parser.add_argument("--accuracy", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--largest-checked", type=int, default=150_000, help="measure the force error up to this size")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, help="write the list here")
    parser.add_argument("--figure", type=Path, help="draw the figure here; beside the list if not given")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; it runs on the CPU with --device cpu")
    solvers = options.solvers.split(",")
    unknown = sorted(set(solvers) - set(SOLVERS))
    if unknown:
        parser.error(f"unknown solvers {unknown}: choose among {', '.join(SOLVERS)}")
    rows, lost = [], []
    print(heading())
    for atoms in map(int, options.sizes.split(",")):
        for quantity in options.quantity.split(","):
            for solver in solvers:
                outcome: dict[str, Any] | str | None = missing(solver, atoms, quantity, options)
                if outcome is None:
                    outcome = run_apart({**vars(options), "atoms": atoms, "quantity": quantity, "solver": solver})
                if isinstance(outcome, str):
                    lost.append(f"{solver}, {atoms} atoms, {quantity}: {outcome}")
                    print(f"{solver:10s} {atoms:8d} {quantity:9s} {outcome}", flush=True)
                else:
                    rows.append(outcome)
                    print(line(outcome), flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
        options.figure = options.figure or options.json.with_suffix(".png")
    if options.figure is not None and rows:
        draw(rows, lost, options.figure)


if __name__ == "__main__":
    main()
