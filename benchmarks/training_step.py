"""Time a training step of the built-in backbone with and without the far field, on a box of 64 water molecules.

    python benchmarks/training_step.py [--threads 2] [--repeat 15] [--frames 1]
        [--config configs/dipeptides-charges.yaml]

A step is what `farfield train` does with a batch: energies and forces, the loss, its backward pass through the forces,
clipping and the optimizer. Both potentials come from one configuration and differ in nothing but ``long_range: null``;
their steps alternate, so that both see the same machine. The frames are the first of ``water/pbe0ts`` where that set is
found, else random boxes of the same size, from a seed, with labels of zero: no time depends on the labels.

Medians in ms; the peak memory is that of a process of its own, less what it had before.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from pathlib import Path

import electrostatics
import torch
from ase import Atoms

from farfield.datasets.dataset import Dataset, Sample, collate, label_structures, load_dataset
from farfield.training import read_config
from farfield.training.build import build_potential, calibrate
from farfield.training.module import PotentialModule, make_optimizer

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "dipeptides-charges.yaml"
KINDS = {"short range": ["model.long_range=null"], "with long range": []}


def water(frames: int, dtype: torch.dtype) -> Dataset:
    """First frames of 64 water molecules of the set, or random ones."""
    try:
        return load_dataset("water/pbe0ts", dtype=dtype, select={"first": frames})
    except FileNotFoundError:
        structures = []
        for seed in range(frames):
            batch, _ = electrostatics.water_box(64, seed)
            atoms = Atoms("OHH" * 64, batch.positions.numpy(), cell=batch.cell[0].numpy(), pbc=True)
            atoms.info["energy"], atoms.arrays["forces"] = 0.0, 0.0 * batch.positions.numpy()
            structures.append(atoms)
        return label_structures(structures, dtype=dtype, name="random water")


class Step:
    """One training step of one potential, as often as called."""

    def __init__(self, options: argparse.Namespace, kind: str) -> None:
        config = read_config(options.config, [f"precision={options.precision}", *KINDS[kind]])
        dtype = getattr(torch, config.precision)
        torch.manual_seed(config.seed)
        data = water(options.frames, dtype)
        potential = build_potential(config.model, data, dtype)
        data = data.with_neighbors(potential.cutoff)
        calibrate(potential, data, config.model)
        sample = collate(list(data))
        # models may want to know that water is neutral
        neutral = torch.zeros(sample.batch.n_systems, dtype=dtype)
        self.sample = Sample(sample.batch.replace(total_charge=neutral), sample.labels)
        self.module = PotentialModule(potential, config.loss, config.optimizer)
        self.optimizer = make_optimizer(potential, config.optimizer)
        self.clip = config.optimizer.clip
        self.parameters = list(potential.parameters())

    def __call__(self) -> float:
        start = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        self.module(self.sample).backward()
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        return 1e3 * (time.perf_counter() - start)


def peak_memory(options: argparse.Namespace, kind: str) -> float:
    """Measure what the first steps need of memory beyond imports (MiB), in a process of its own."""
    torch.set_num_threads(options.threads)
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = Step(options, kind)
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - imported) / 1024.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=15)
    parser.add_argument("--config", default=str(CONFIG))
    parser.add_argument("--frames", type=int, default=1, help="boxes in a batch")
    parser.add_argument("--precision", choices=["float32", "float64"], default="float32")
    options = parser.parse_args()
    # First of all: a process is born with the peak of the one that made it.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peaks = {kind: pool.apply(peak_memory, (options, kind)) for kind in KINDS}
    torch.set_num_threads(options.threads)
    steps = {kind: Step(options, kind) for kind in KINDS}
    atoms = next(iter(steps.values())).sample.batch.n_atoms
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for count in range(options.repeat + 3):
        for kind, step in steps.items():
            taken = step()
            if count >= 3:  # the first ones fill caches
                times[kind].append(taken)
    print(f"{Path(options.config).name}, {atoms} atoms, {options.precision}, {options.threads} threads")
    print("| potential | training step (ms) | peak memory (MiB) |")
    print("|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {statistics.median(times[kind]):.1f} | {peaks[kind]:.0f} |")
    # Of steps side by side, so that a machine that slows down for a while does not count.
    added = statistics.median(far - near for near, far in zip(*times.values(), strict=True))
    near = statistics.median(times["short range"])
    print(f"\nlong range adds {added:.1f} ms, {100.0 * added / near:.1f} % (asked: at most 15 % or 5 ms)")


if __name__ == "__main__":
    main()
