"""Time farfield's Coulomb solver beside the plain baseline, each at the same measured force accuracy.

    python benchmarks/electrostatics.py [--threads 2] [--repeat 7] [--accuracy 1e-4] [--only NAME] [--ours]

Cases: 8 water boxes of 192 atoms, 1 box of 192, 1000 and 3000 atoms, 32 open molecules of 40 atoms; with charges alone
and with charges, dipoles and quadrupoles, the molecules with and without one-shot response. "forces" is the energy and
its gradient in the positions; "training" the gradient of a loss on energies and forces in the multipoles and positions
(double backward).

The cutoff of the baseline is set where its measured relative RMS force error equals that of farfield; both errors are
taken against farfield at accuracy 1e-10, which the tests tie to independent references. Medians; the structures are
random, from a seed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import plain_baseline
import torch
from torch import Tensor

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles

DTYPE = torch.float64


def water_box(molecules: int, seed: int) -> tuple[AtomicBatch, Tensor]:
    """Randomly turned water molecules on a jittered grid at 1 g/cm³, and their SPC/E charges."""
    generator = torch.Generator().manual_seed(seed)
    side = (molecules * 29.92) ** (1.0 / 3.0)
    n = 1
    while n**3 < molecules:
        n += 1
    grid = torch.cartesian_prod(*[torch.arange(n, dtype=DTYPE)] * 3)
    chosen = grid[torch.randperm(n**3, generator=generator)[:molecules]]
    centres = (chosen + 0.15 * torch.randn(molecules, 3, generator=generator, dtype=DTYPE)) * (side / n)
    turn, _ = torch.linalg.qr(torch.randn(molecules, 3, 3, generator=generator, dtype=DTYPE))
    shape = torch.tensor([[0.0, 0.0, 0.0], [0.757, 0.586, 0.0], [-0.757, 0.586, 0.0]], dtype=DTYPE)
    positions = (centres[:, None] + torch.einsum("mab,xb->mxa", turn, shape)).reshape(-1, 3)
    charges = torch.tensor([-0.8476, 0.4238, 0.4238], dtype=DTYPE).repeat(molecules)
    return _one_system(positions, torch.eye(3, dtype=DTYPE) * side, True), charges


def molecule(atoms: int, seed: int) -> tuple[AtomicBatch, Tensor]:
    """Make a random compact molecule: each atom 1.1–1.5 Å from an earlier one and 1 Å or more from all others."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.zeros(1, 3, dtype=DTYPE)
    while len(positions) < atoms:
        origin = positions[int(torch.randint(len(positions), (), generator=generator))]
        step = torch.randn(3, generator=generator, dtype=DTYPE)
        new = origin + step / step.norm() * (1.1 + 0.4 * torch.rand((), generator=generator, dtype=DTYPE))
        if float((positions - new).norm(dim=1).min()) > 1.0:
            positions = torch.cat((positions, new[None]))
    charges = 0.3 * torch.randn(atoms, generator=generator, dtype=DTYPE)
    return _one_system(positions, torch.zeros(3, 3, dtype=DTYPE), False), charges - charges.mean()


def _one_system(positions: Tensor, cell: Tensor, periodic: bool) -> AtomicBatch:
    numbers = torch.ones(len(positions), dtype=torch.int64)
    return AtomicBatch(positions, numbers, cell[None], torch.tensor([[periodic] * 3]), torch.zeros_like(numbers))


def higher_multipoles(atoms: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Random dipoles of 0.2 e·Å and traceless quadrupoles of 0.2 e·Å² a component."""
    generator = torch.Generator().manual_seed(seed)
    dipoles = 0.2 * torch.randn(atoms, 3, generator=generator, dtype=DTYPE)
    raw = 0.2 * torch.randn(atoms, 3, 3, generator=generator, dtype=DTYPE)
    symmetric = 0.5 * (raw + raw.mT)
    trace = symmetric.diagonal(dim1=1, dim2=2).mean(1)
    return dipoles, symmetric - trace[:, None, None] * torch.eye(3, dtype=DTYPE)


class Case:
    """One batch with its multipoles, and the two ways of getting its energies."""

    def __init__(self, name: str, parts: list[tuple[AtomicBatch, Tensor]], full: bool, response: bool = False) -> None:
        self.name, self.response = name, response
        self.batch = concatenate([part for part, _ in parts])
        self.charges = torch.cat([charges for _, charges in parts])
        self.dipoles, self.quadrupoles = higher_multipoles(self.batch.n_atoms) if full else (None, None)
        self.counts = self.batch.counts.tolist()
        self.periodic = bool(self.batch.pbc.all())
        self.softness = torch.full_like(self.charges, 0.02) if response else None
        self.polarizability = torch.full_like(self.charges, 0.05) if response else None

    def farfield(self, accuracy: float) -> Callable[..., Tensor]:
        """Energies by farfield; the plan is made in every call, as a training step has to."""
        coulomb = Coulomb(accuracy=accuracy)

        def energies(positions: Tensor, q: Tensor, u: Tensor | None, t: Tensor | None) -> Tensor:
            batch = self.batch.replace(positions=positions)
            plan = coulomb.prepare(batch)
            result = coulomb(batch, Multipoles(q, u, t), plan, outputs="all" if self.response else "energy")
            if not self.response:
                return result.energy
            induced = self.softness * result.potential**2 + self.polarizability * (result.field**2).sum(1)
            return result.energy - 0.5 * batch.sum_over_atoms(induced)

        return energies

    def plain(self, k_cutoff: float | None) -> Callable[..., Tensor]:
        """Energies by the plain baseline."""

        def energies(positions: Tensor, q: Tensor, u: Tensor | None, t: Tensor | None) -> Tensor:
            return plain_baseline.batch_energies(
                positions, self.batch.cell, self.counts, q, u, t, k_cutoff, self.softness, self.polarizability
            )

        return energies

    def _leaves(self) -> list[Tensor | None]:
        given = (self.batch.positions, self.charges, self.dipoles, self.quadrupoles)
        return [None if values is None else values.clone().requires_grad_() for values in given]

    def forces(self, energies: Callable[..., Tensor]) -> Tensor:
        """Energy and forces."""
        leaves = self._leaves()
        return -torch.autograd.grad(energies(*leaves).sum(), leaves[0])[0]

    def training(self, energies: Callable[..., Tensor]) -> None:
        """One backward pass through energies and forces."""
        leaves = self._leaves()
        energy = energies(*leaves)
        forces = -torch.autograd.grad(energy.sum(), leaves[0], create_graph=True)[0]
        loss = (energy**2).sum() * 1e-3 + ((forces - 1.0) ** 2).sum()
        torch.autograd.grad(loss, [leaf for leaf in leaves if leaf is not None])


def equal_cutoff(case: Case, reference: Tensor, error: float) -> float:
    """Sharp cutoff (1/Å) at which the plain sum has a given relative RMS force error."""
    low, high = 3.5, 6.5
    for _ in range(6):
        middle = 0.5 * (low + high)
        measured = float((case.forces(case.plain(middle)) - reference).norm() / reference.norm())
        low, high = (middle, high) if measured > error else (low, middle)
    return 0.5 * (low + high)


def median_time(work: Callable[[], object], repeat: int) -> float:
    """Median wall time of a call in ms, after one call to warm up."""
    work()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def cases() -> dict[str, Callable[[], Case]]:
    """All cases by name; made when asked for."""

    def boxes(count: int, molecules: int) -> list[tuple[AtomicBatch, Tensor]]:
        return [water_box(molecules, seed) for seed in range(count)]

    def molecules() -> list[tuple[AtomicBatch, Tensor]]:
        return [molecule(40, seed) for seed in range(32)]

    return {
        "8x192-q": lambda: Case("8 water boxes of 192, q", boxes(8, 64), False),
        "8x192-quQ": lambda: Case("8 water boxes of 192, q u Q", boxes(8, 64), True),
        "1x192-q": lambda: Case("1 water box of 192, q", boxes(1, 64), False),
        "1x192-quQ": lambda: Case("1 water box of 192, q u Q", boxes(1, 64), True),
        "1x1000-q": lambda: Case("1 water box of 999, q", boxes(1, 333), False),
        "1x3000-q": lambda: Case("1 water box of 3000, q", boxes(1, 1000), False),
        "1x3000-quQ": lambda: Case("1 water box of 3000, q u Q", boxes(1, 1000), True),
        "32x40-q": lambda: Case("32 molecules of 40, q", molecules(), False),
        "32x40-quQ": lambda: Case("32 molecules of 40, q u Q", molecules(), True),
        "32x40-response": lambda: Case("32 molecules of 40, q u Q, response", molecules(), True, response=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--accuracy", type=float, default=1e-4)
    parser.add_argument("--only", help="run the cases whose name contains this")
    parser.add_argument("--ours", action="store_true", help="time farfield alone")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads, float64, accuracy {arguments.accuracy:g}; ms, medians of {arguments.repeat}")
    print("| case | error | k cutoff | forces: plain | farfield | ratio | training: plain | farfield | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, make in cases().items():
        if arguments.only and arguments.only not in name:
            continue
        case = make()
        ours = case.farfield(arguments.accuracy)
        reference = case.forces(case.farfield(1e-10)) if case.periodic else case.forces(case.plain(None))
        error = float((case.forces(ours) - reference).norm() / reference.norm())
        # The plain baseline of large cases takes seconds and gigabytes: fewer repetitions say enough.
        repeat = arguments.repeat if case.batch.n_atoms < 2500 else max(1, arguments.repeat // 3)
        times = [median_time(lambda: case.forces(ours), repeat), median_time(lambda: case.training(ours), repeat)]  # noqa: B023
        if arguments.ours:
            print(f"| {case.name} | {error:.1e} | | | {times[0]:.1f} | | | {times[1]:.1f} | |", flush=True)
            continue
        if case.batch.n_atoms > 2500 and case.dipoles is not None:  # the baseline's tables would take tens of GB
            print(f"| {case.name} | {error:.1e} | - | - | {times[0]:.1f} | - | - | {times[1]:.1f} | - |", flush=True)
            continue
        cutoff = equal_cutoff(case, reference, error) if case.periodic else None
        plain = case.plain(cutoff)
        slow = [median_time(lambda: case.forces(plain), repeat), median_time(lambda: case.training(plain), repeat)]  # noqa: B023
        print(
            f"| {case.name} | {error:.1e} | {f'{cutoff:.2f}' if cutoff else '-'} "
            f"| {slow[0]:.1f} | {times[0]:.1f} | {slow[0] / times[0]:.1f}x "
            f"| {slow[1]:.1f} | {times[1]:.1f} | {slow[1] / times[1]:.1f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
