"""Time what dipoles, quadrupoles and response add to charges alone: energy and forces, and a training step's gradients.

    python benchmarks/response.py [--threads 2] [--repeat 7] [--accuracy 1e-4] [--atoms 9999] [--only molecules]
                                  [--processor]

Cases: 32 open molecules of 40 atoms, and one box of water on the mesh. Models: charges; charges with induced charges
and dipoles; charges, dipoles and quadrupoles; all of these, in one shot and self-consistently. Each model's calls
alternate with those of the others, so that all see the same machine. Medians in ms, and as a multiple of charges alone;
float32 with ``--float32``. ``--processor`` takes the time of the processor instead, of all threads together: for
machines that are busy with other work.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import electrostatics
import torch
from torch import Tensor

from farfield.atoms.batch import AtomicBatch, concatenate
from farfield.electrostatics.coulomb import Coulomb
from farfield.electrostatics.multipoles import Multipoles
from farfield.electrostatics.response import LinearResponse
from farfield.electrostatics.susceptibility import Response

#: Whether dipoles and quadrupoles are given, and how charges and dipoles are induced.
MODELS = {
    "q": (False, None),
    "q+κ+α": (False, "one-shot"),
    "q+u+Q": (True, None),
    "q+u+Q+κ+α": (True, "one-shot"),
    "q+u+Q+κ+α scf": (True, "scf"),
}


class Model:
    """One model of one batch, ready to be timed."""

    def __init__(
        self, batch: AtomicBatch, charges: Tensor, name: str, accuracy: float, clock: Callable[[], float]
    ) -> None:
        full, mode = MODELS[name]
        dipoles, quadrupoles = electrostatics.higher_multipoles(batch.n_atoms)
        self.batch, self.mode, self.clock = batch, mode, clock
        self.given = [charges, *((dipoles, quadrupoles) if full else ())]
        self.given = [values.to(batch.positions.dtype) for values in self.given]
        self.response = [torch.full_like(self.given[0], 0.01), torch.full_like(self.given[0], 0.05)] if mode else []
        self.coulomb = Coulomb(accuracy=accuracy)
        self.linear = LinearResponse(self.coulomb, mode=mode) if mode else None
        self.plan = self.coulomb.prepare(batch)

    def run(self, training: bool) -> float:
        """Time of energy and forces, or of the gradients of a loss on them (ms)."""
        positions = self.batch.positions.detach().clone().requires_grad_()
        given = [values.detach().clone().requires_grad_(training) for values in self.given]
        response = [values.detach().clone().requires_grad_(training) for values in self.response]
        batch = self.batch.replace(positions=positions)
        start = self.clock()
        if self.linear is None:
            energy = self.coulomb(batch, Multipoles(*given), self.plan, outputs="energy").energy
        else:
            energy = self.linear(batch, Multipoles(*given), Response(*response), self.plan).energy
        (slope,) = torch.autograd.grad(energy.sum(), positions, create_graph=training)
        if training:
            loss = (slope - 1.0).square().sum() + 1e-3 * energy.square().sum()
            torch.autograd.grad(loss, [positions, *given, *response])
        return 1e3 * (self.clock() - start)


def cases(options: argparse.Namespace) -> dict[str, tuple[AtomicBatch, Tensor]]:
    """Batches and their charges."""
    molecules = [electrostatics.molecule(40, seed) for seed in range(32)]
    found = {"molecules": (concatenate([batch for batch, _ in molecules]), torch.cat([q for _, q in molecules]))}
    if options.only != "molecules":
        found["water"] = electrostatics.water_box(options.atoms // 3, 0)
    return {name: found[name] for name in found if options.only in (None, name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--accuracy", type=float, default=1e-4)
    parser.add_argument("--atoms", type=int, default=9999)
    parser.add_argument("--only", choices=["molecules", "water"])
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--processor", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor else time.perf_counter
    print("| case | model | forces (ms) | × charges | training (ms) | × charges |\n|---|---|---|---|---|---|")
    for case, (batch, charges) in cases(options).items():
        batch = batch.to(dtype=torch.float32 if options.float32 else torch.float64)
        models = {name: Model(batch, charges, name, options.accuracy, clock) for name in MODELS}
        times: dict[tuple[str, bool], list[float]] = {(name, t): [] for name in models for t in (False, True)}
        for model in models.values():
            model.run(True)
        for _ in range(options.repeat):
            for (name, training), series in times.items():
                series.append(models[name].run(training))
        medians = {key: statistics.median(series) for key, series in times.items()}
        for name in models:
            cells = [f"{medians[name, t]:.1f} | {medians[name, t] / medians['q', t]:.2f}" for t in (False, True)]
            print(f"| {case} | {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
