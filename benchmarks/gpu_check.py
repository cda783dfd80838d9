"""What only a GPU can show: the same numbers as on the CPU, no waiting, one compiled graph, and the time of the sum.

    PYTHONPATH=src python3 benchmarks/gpu_check.py --json FILE
        [--parts correct,models,waiting,kernels,table,compiled,graphs] [--sizes 1000,10000,100000,1000000]
        [--seconds 140] [--device cuda]

Parts: ``correct`` compares energy, forces, dE/dcell and the gradient of a loss on forces with those of the CPU in
float64, and forces in float32 at 10⁵ atoms with float64; ``models`` does so for a model with every multipole and
response, its training included; ``waiting`` makes calls with a plan while torch refuses to wait for the device;
``kernels`` times spreading, gathering and transforms alone; ``table`` is that of ``benchmarks.scaling``; ``compiled``
traces the solver into one graph; ``graphs`` captures and replays a CUDA graph of energy and forces. A part that fails
prints why, and the next one runs. After so many seconds nothing new is begun. With ``--device cpu`` the script itself
can be tried without a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.dispersion import Dispersion
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.spreading import Stencil, count_of, gather, spread

sys.path.insert(0, str(Path(__file__).parent))
import scaling  # noqa: E402
from electrostatics import higher_multipoles, water_box  # noqa: E402

START = time.perf_counter()
BULK, SLAB, WIRE, CLUSTER = (True,) * 3, (True, True, False), (False, False, True), (False,) * 3


class Report:
    """What was found so far; written after every entry, so that a run that is cut short leaves something."""

    def __init__(self, path: Path | None, device: str, seconds: float) -> None:
        self.device, self.seconds, self._path = torch.device(device), seconds, path
        name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.found: dict[str, Any] = {"device": name, "torch": torch.__version__, "failed": [], "entries": []}

    def add(self, part: str, name: str, **values: Any) -> None:
        self.found["entries"].append({"part": part, "name": name, **values})
        shown = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        )
        print(f"[{time.perf_counter() - START:6.1f} s] {part}: {name}: {shown}", flush=True)
        self.write()

    def attempt(self, part: str, name: str, work: Callable[[], None]) -> None:
        """Run some work, and go on after it whatever happens."""
        if time.perf_counter() - START > self.seconds:
            self.add(part, name, skipped="no time left")
            return
        try:
            work()
        except Exception as error:
            print(f"[{time.perf_counter() - START:6.1f} s] {part}: {name}: FAILED", flush=True)
            traceback.print_exc()
            sys.stderr.flush()
            self.found["failed"].append({"part": part, "name": name, "error": repr(error)[:2000]})
            self.write()

    def write(self) -> None:
        if self._path is not None:
            self._path.write_text(json.dumps(self.found, indent=1) + "\n")


def water(molecules: int, order: int, pbc: tuple[bool, ...] = BULK) -> tuple[AtomicBatch, Multipoles]:
    """Make a box of water in some boundary conditions, with random dipoles and quadrupoles."""
    batch, charges = water_box(molecules, seed=2)
    dipoles, quadrupoles = higher_multipoles(batch.n_atoms)
    given = Multipoles(charges, dipoles if order > 0 else None, quadrupoles if order > 1 else None)
    return batch.replace(pbc=torch.tensor([pbc])), given


def outcomes(coulomb: Coulomb, batch: AtomicBatch, multipoles: Multipoles, plan: Any = None) -> dict[str, Tensor]:
    """Energy, forces, dE/dcell, potentials, and the gradient of a loss on all of them."""
    positions, cell = batch.positions.detach().clone().requires_grad_(), batch.cell.detach().clone().requires_grad_()
    parts = [part.detach().clone().requires_grad_() for part in scaling.given(multipoles)]
    moved = batch.replace(positions=positions, cell=cell)
    energy = coulomb(moved, Multipoles(*parts), plan, "energy").energy
    leaves = (positions, cell) if bool(batch.pbc.any()) else (positions,)
    slopes = torch.autograd.grad(energy.sum(), leaves, create_graph=True)
    loss = energy.square().sum() + sum(slope.double().square().sum() for slope in slopes)
    second = torch.autograd.grad(loss, [*leaves, *parts])
    result = coulomb(batch, multipoles, plan)
    found = {
        "energy": energy,
        "forces": slopes[0],
        "potential": result.potential,
        "field gradient": result.field_gradient,
    }
    found |= {f"second {index}": value for index, value in enumerate(second)}
    if len(slopes) > 1:
        found["dE/dcell"] = slopes[1]
    return {name: value.detach() for name, value in found.items()}


def difference(one: Tensor, other: Tensor) -> float:
    one, other = one.double().cpu(), other.double().cpu()
    return float((one - other).norm() / other.norm().clamp(min=1e-300))


def correct(report: Report) -> None:
    """Compare with the CPU, in float64 and float32."""
    cases: list[tuple[str, tuple[AtomicBatch, Multipoles], dict[str, Any]]] = []
    for order in (0, 1, 2):
        small = water(16, order)
        cases.append((f"Ewald, order {order}", small, {"method": "ewald"}))
        cases.append((f"mesh, order {order}", water(80, order), {"method": "mesh"}))
        cases.append((f"open, order {order}", water(16, order, CLUSTER), {"method": "open"}))
    for name, pbc in (("slab", SLAB), ("wire", WIRE), ("cluster", CLUSTER)):
        cases.append((f"{name}, Ewald", water(8, 2, pbc), {"method": "ewald"}))
        cases.append((f"{name}, mesh", water(8, 2, pbc), {"method": "mesh"}))
    boxes = [water(n, 2, pbc) for n, pbc in ((5, BULK), (4, CLUSTER), (6, SLAB), (3, BULK))]
    joined = Multipoles(*(torch.cat(parts) for parts in zip(*(scaling.given(box[1]) for box in boxes), strict=True)))
    cases.append(("mixed batch", (concatenate([box[0] for box in boxes]), joined), {"background": "point"}))
    for name, (batch, multipoles), options in cases:

        def compare(name=name, batch=batch, multipoles=multipoles, options=options) -> None:  # type: ignore[no-untyped-def]
            coulomb = Coulomb(accuracy=1e-4, **options)
            on_host = outcomes(coulomb, batch, multipoles)
            there = scaling.moved(batch, multipoles, {"device": report.device})
            found = outcomes(coulomb, *there)
            errors = {key: difference(found[key], on_host[key]) for key in on_host}
            single = outcomes(coulomb, *scaling.moved(*there, {"dtype": torch.float32}))
            worst = max(errors, key=lambda key: errors[key])
            report.add(
                "correct",
                name,
                worst=errors[worst],
                of=worst,
                float32_energy=difference(single["energy"], on_host["energy"]),
                float32_forces=difference(single["forces"], on_host["forces"]),
            )
            if errors[worst] > 1e-9:
                raise AssertionError(f"{name}: {errors}")

        report.attempt("correct", name, compare)

    def dispersion() -> None:
        batch, _ = water(30, 0)
        coefficients = 1.0 + torch.rand(batch.n_atoms, dtype=torch.float64)
        worst = 0.0
        for pbc in (BULK, SLAB, CLUSTER):
            for method in ("auto", "mesh"):
                solver, found = Dispersion(method=method), []
                for device in ("cpu", report.device):
                    box = batch.replace(pbc=torch.tensor([pbc])).to(device)
                    positions = box.positions.clone().requires_grad_()
                    energy = solver(box.replace(positions=positions), coefficients.to(device)).energy
                    found.append(torch.autograd.grad(energy.sum(), positions)[0])
                worst = max(worst, difference(found[1], found[0]))
        report.add("correct", "dispersion", worst=worst)
        if worst > 1e-9:
            raise AssertionError(f"dispersion: {worst}")

    report.attempt("correct", "dispersion", dispersion)

    def single_precision() -> None:
        for order in (0, 2):
            batch, multipoles = scaling.moved(*water(33_333, order), {"device": report.device})
            tight = scaling.find_forces(scaling.farfield_energy(batch, 1e-7, "auto"), batch, multipoles)
            for dtype in (torch.float64, torch.float32):
                cast = scaling.moved(batch, multipoles, {"dtype": dtype})
                found = scaling.find_forces(scaling.farfield_energy(cast[0], 1e-5, "auto"), *cast)
                error = difference(found, tight)
                report.add("correct", f"10^5 atoms, order {order}, {dtype}, accuracy 1e-5", force_error=error)
                if error > 1e-4:
                    raise AssertionError(f"relative force error {error}")

    report.attempt("correct", "float32 at 10^5 atoms", single_precision)


def models(report: Report) -> None:
    """Compare energy, forces, stress and the gradients of a step of training with those of the CPU, with response."""
    from farfield.potentials.augmented import AugmentedPotential
    from farfield.potentials.cace import CACE
    from farfield.potentials.long_range import LongRange

    boxes = [water(n, 0, pbc)[0] for n, pbc in ((4, CLUSTER), (30, BULK), (6, SLAB), (110, BULK))]
    for response in ("one-shot", "scf"):

        def compare(response=response) -> None:  # type: ignore[no-untyped-def]
            torch.manual_seed(0)
            backbone = CACE([1, 8], 3.5, max_l=2, max_nu=2, n_features=16, n_vectors=4, n_tensors=4)
            far = LongRange(
                backbone.n_scalars,
                backbone.n_vectors,
                backbone.n_tensors,
                dipoles=True,
                quadrupoles=True,
                induced_charges=True,
                induced_dipoles=True,
                response=response,
                charge_scale=0.3,
            )
            potential = AugmentedPotential(backbone, far).double()
            batch = potential.add_neighbors(concatenate(boxes))
            found: list[dict[str, Tensor]] = []
            for device in (torch.device("cpu"), report.device):
                potential.to(device).zero_grad()
                out = potential.predict(batch.to(device), forces=True, stress=True, create_graph=True)
                assert out.forces is not None  # noqa: S101 - it was asked for
                assert out.stress is not None  # noqa: S101 - so was this
                (out.energy.square().mean() + out.forces.square().sum()).backward()  # type: ignore[no-untyped-call]
                values = {"energy": out.energy, "forces": out.forces, "stress": out.stress.nan_to_num()}
                values |= {name: p.grad for name, p in potential.named_parameters() if p.grad is not None}
                found.append({name: value.detach().cpu().clone() for name, value in values.items()})
            errors = {name: difference(value, found[0][name]) for name, value in found[1].items()}
            worst = max(errors, key=lambda name: errors[name])
            report.add("models", response, worst=errors[worst], of=worst, gradients=len(errors) - 3)
            if not errors[worst] < 1e-6:
                raise AssertionError(f"{response}: {errors}")

        report.attempt("models", response, compare)


def waiting(report: Report) -> None:
    """Refuse to wait for the device while calls with a plan are made, training included."""
    if report.device.type != "cuda":
        return
    for name, method, pbc, order in (
        ("mesh", "mesh", BULK, 0),
        ("mesh with quadrupoles", "mesh", BULK, 2),
        ("Ewald", "ewald", BULK, 2),
        ("open", "open", CLUSTER, 0),
        ("open with quadrupoles", "open", CLUSTER, 2),
        ("slab by mesh", "mesh", SLAB, 1),
        ("wire by Ewald", "ewald", WIRE, 1),
        ("mesh of 10^5 atoms", "auto", BULK, 0),
    ):

        def call(name=name, method=method, pbc=pbc, order=order) -> None:  # type: ignore[no-untyped-def]
            molecules = 33_333 if method == "auto" else 30
            batch, multipoles = scaling.moved(*water(molecules, order, pbc), {"device": report.device})
            coulomb = Coulomb(method=method)
            plan = coulomb.prepare(batch)
            positions = batch.positions.clone().requires_grad_()
            cell = batch.cell.clone().requires_grad_()
            parts = [part.clone().requires_grad_() for part in scaling.given(multipoles)]
            leaves = [positions, cell] if any(pbc) else [positions]

            def train() -> None:
                fixed = coulomb(batch.replace(positions=positions), Multipoles(*parts), plan, "energy").energy.sum()
                torch.autograd.grad(fixed, positions)
                moved = batch.replace(positions=positions, cell=cell)
                energy = coulomb(moved, Multipoles(*parts), plan).energy.sum()
                slopes = torch.autograd.grad(energy, leaves, create_graph=True)
                torch.autograd.grad(sum(slope.square().sum() for slope in slopes), [*leaves, *parts])

            train()
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                train()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            report.add("waiting", name, waits="never")

        report.attempt("waiting", name, call)


def timed(work: Callable[[], object], device: torch.device, repeat: int = 10) -> float:
    """Time of some work on the device (ms), by events where there are any."""
    if device.type != "cuda":
        return 1e3 * scaling.timed(work, 2, device)[0]
    for _ in range(2):
        work()
    times = []
    for _ in range(repeat):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last))
    return statistics.median(times)


def in_other_order(u: Tensor, coefficients: Tensor, mesh: Tensor, stencil: Stencil) -> dict[str, float]:
    """Time the kernels for GPUs (ms) with atoms sorted where they are not, and not where they are."""
    places, name = stencil.places, "sorted" if stencil.places is None else "not sorted"
    first, second = (torch.floor(u[:, axis]).int() for axis in (0, 1))
    stencil.places = torch.argsort(first * stencil.shape[1] + second) if places is None else None
    found = {
        f"spread, {name}": timed(lambda: spread(u, coefficients, stencil, 0), u.device),
        f"gather 1, {name}": timed(lambda: gather(u, mesh, stencil, 1), u.device),
    }
    stencil.places = places
    return found


def kernels(report: Report, sizes: list[int]) -> None:
    """Time spreading and gathering alone: compiled kernels sorted and not, plain torch, and the transforms."""
    from farfield.electrostatics.mesh import inverse_transform, transform

    for atoms in sizes:
        for dtype in (torch.float64, torch.float32):

            def time_them(atoms=atoms, dtype=dtype) -> None:  # type: ignore[no-untyped-def]
                device, degree = report.device, 0
                batch, _ = scaling.make_system(atoms, 0)
                group: Any = Coulomb(accuracy=3e-4, method="mesh").prepare(batch).groups[0]
                shape, order = group.shapes[0], group.orders[0]
                u = (batch.positions @ torch.linalg.inv(batch.cell[0]) % 1.0) * torch.tensor(shape, dtype=torch.float64)
                u = u.to(device)
                coefficients = torch.randn(batch.n_atoms, count_of(degree), dtype=dtype, device=device)
                found: dict[str, float] = {}
                stencil, plain = Stencil(u, shape, order), Stencil(u, shape, order, compiled=False)
                mesh = spread(u, coefficients, plain, 0)
                same = difference(spread(u, coefficients, stencil, 0), mesh)
                same = max(same, difference(gather(u, mesh, stencil, 1), gather(u, mesh, plain, 1)))
                found["make stencil"] = timed(lambda: Stencil(u, shape, order), device)
                found["spread"] = timed(lambda: spread(u, coefficients, stencil, 0), device)
                found["gather 1"] = timed(lambda: gather(u, mesh, stencil, 1), device)
                found["gather 2"] = timed(lambda: gather(u, mesh, stencil, 2), device)
                if stencil.kernels == "triton":
                    found |= in_other_order(u, coefficients, mesh, stencil)
                found["plain spread"] = timed(lambda: spread(u, coefficients, plain, 0), device, 3)
                found["plain gather 1"] = timed(lambda: gather(u, mesh, plain, 1), device, 3)
                found["transforms"] = timed(lambda: inverse_transform(transform(mesh), shape[2]), device)
                report.add(
                    "kernels",
                    f"{batch.n_atoms} atoms, {dtype}, order {order}, mesh {'x'.join(map(str, shape))} (ms)",
                    kernels=stencil.kernels,
                    difference=same,
                    **found,
                )
                if same > (1e-11 if dtype == torch.float64 else 1e-4):
                    raise AssertionError(f"compiled and plain kernels differ by {same}")

            report.attempt("kernels", f"{atoms} atoms, {dtype}", time_them)


def table(report: Report, sizes: list[int]) -> None:
    """Print the table of `benchmarks.scaling`."""
    rows = report.found["table"] = []
    print(scaling.heading(), flush=True)
    for order in (0, 2):
        for atoms in sizes:
            if order and atoms > 100_000:
                continue

            def time_size(atoms=atoms, order=order) -> None:  # type: ignore[no-untyped-def]
                system = scaling.moved(*scaling.make_system(atoms, order), {"device": report.device})
                exact = scaling.exact_forces(*system) if atoms <= 1_000_000 else None
                solvers = ["farfield", "floor"] if order or atoms > 100_000 else ["farfield", "torch-pme", "floor"]
                for dtype in (torch.float64, torch.float32):
                    cast = scaling.moved(*system, {"dtype": dtype})
                    case = argparse.Namespace(
                        multipoles="q" if order == 0 else "quQ", dtype=str(dtype)[6:], device=report.device.type
                    )
                    for quantity in ("forces", "training"):
                        for solver in solvers:
                            lacking = scaling.missing(solver, atoms, quantity, case)
                            if lacking is not None or (solver == "floor" and quantity == "training"):
                                continue

                            def one(solver=solver, cast=cast, quantity=quantity) -> None:  # type: ignore[no-untyped-def]
                                rows.append(scaling.row_of(solver, *cast, quantity, 3e-4, 7, exact))
                                label = "q" if order == 0 else "quQ"
                                shown = f"{label} {scaling.line(rows[-1])}"
                                print(f"[{time.perf_counter() - START:6.1f} s] {shown}", flush=True)
                                report.write()

                            report.attempt("table", f"{solver}, {atoms} atoms, {quantity}, {dtype}", one)

            report.attempt("table", f"{atoms} atoms", time_size)
            if report.device.type == "cuda":
                torch.cuda.empty_cache()


def compiled(report: Report) -> None:
    """Trace the solver into one graph and compare with eager mode; then time what the compiler makes of it."""
    cases = [
        ("mixed batch, q", concatenate([water(3, 0)[0], water(2, 0, CLUSTER)[0], water(3, 0, SLAB)[0]]), 0, {}),
        ("mesh, q u Q", water(20, 2)[0], 2, {"method": "mesh"}),
        ("wire, q u", water(4, 1, WIRE)[0], 1, {}),
    ]
    for backend, chosen in (
        ("aot_eager", cases),
        ("inductor", [("mesh, q", water(1000, 0)[0], 0, {"method": "mesh"})]),
    ):
        for name, batch, order, options in chosen:

            def trace(backend=backend, name=name, batch=batch, order=order, options=options) -> None:  # type: ignore[no-untyped-def]
                charges = torch.randn(batch.n_atoms, dtype=torch.float64)
                dipoles, quadrupoles = higher_multipoles(batch.n_atoms)
                multipoles = Multipoles(charges, dipoles if order > 0 else None, quadrupoles if order > 1 else None)
                box, multipoles = scaling.moved(batch, multipoles, {"device": report.device})
                coulomb = Coulomb(accuracy=1e-3, **options)
                plan = coulomb.prepare(box)

                def energy(positions: Tensor, *parts: Tensor) -> Tensor:
                    return coulomb(box.replace(positions=positions), Multipoles(*parts), plan, "energy").energy

                leaves = [t.detach().clone().requires_grad_() for t in (box.positions, *scaling.given(multipoles))]
                torch._dynamo.reset()
                begin = time.perf_counter()
                faster = torch.compile(energy, fullgraph=True, backend=backend)
                times, found = [], []
                for function in (faster, energy):

                    def work(function=function) -> list[Tensor]:  # type: ignore[no-untyped-def]
                        value = function(*leaves)
                        return [value.detach(), *torch.autograd.grad(value.sum(), leaves)]

                    found.append(work())
                    if len(found) == 1:
                        seconds = time.perf_counter() - begin
                    times.append(timed(work, report.device))
                worst = max(difference(one, other) for one, other in zip(*found, strict=True))
                report.add(
                    "compiled",
                    f"{name}, {backend}",
                    difference=worst,
                    compile_s=seconds,
                    compiled_ms=times[0],
                    eager_ms=times[1],
                )
                if worst > 1e-9:
                    raise AssertionError(f"compiled and eager differ by {worst}")

            report.attempt("compiled", f"{name}, {backend}", trace)


def graphs(report: Report, sizes: list[int]) -> None:
    """Capture energy and forces with a plan in a CUDA graph, and time what replays it at other positions."""
    if report.device.type != "cuda":
        return
    for atoms in sizes:

        def replay(atoms=atoms) -> None:  # type: ignore[no-untyped-def]
            batch, multipoles = scaling.moved(*scaling.make_system(atoms, 0), {"device": report.device})
            coulomb = Coulomb(accuracy=3e-4, method="mesh")
            plan = coulomb.prepare(batch)
            positions = batch.positions.clone().requires_grad_()

            def work() -> tuple[Tensor, Tensor]:
                energy = coulomb(batch.replace(positions=positions), multipoles, plan, "energy").energy
                return energy, torch.autograd.grad(energy.sum(), positions)[0]

            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    work()
            torch.cuda.current_stream().wait_stream(stream)
            eager = timed(work, report.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                energy, slope = work()
            with torch.no_grad():
                positions += 0.1 * torch.randn_like(positions)
            graph.replay()
            expected = work()
            worst = max(difference(energy, expected[0]), difference(slope, expected[1]))
            report.add(
                "graphs",
                f"{atoms} atoms",
                difference=worst,
                eager_ms=eager,
                replay_ms=timed(graph.replay, report.device),
            )
            if worst > 1e-9:
                raise AssertionError(f"the graph and a call differ by {worst}")

        report.attempt("graphs", f"{atoms} atoms", replay)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", default="correct,models,waiting,kernels,table,compiled,graphs")
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--seconds", type=float, default=140.0)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here: --device cpu tries the script itself")
    warnings.filterwarnings("ignore", message=".*Synchronization debug mode is a prototype.*")
    report = Report(options.json, options.device, options.seconds)
    sizes = [int(size) for size in options.sizes.split(",")]
    work: dict[str, Callable[[], None]] = {
        "correct": lambda: correct(report),
        "models": lambda: models(report),
        "waiting": lambda: waiting(report),
        "kernels": lambda: kernels(report, sizes[1:]),
        "table": lambda: table(report, sizes),
        "compiled": lambda: compiled(report),
        "graphs": lambda: graphs(report, sizes),
    }
    for part in options.parts.split(","):
        report.attempt(part, "all", work[part])
    report.write()
    failed = [f"{entry['part']}: {entry['name']}: {entry['error'][:300]}" for entry in report.found["failed"]]
    print(f"[{time.perf_counter() - START:6.1f} s] {len(failed)} failed", *failed, sep="\n  ", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
