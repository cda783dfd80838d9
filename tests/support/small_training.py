"""A training small enough to be run many times: a few tiny clusters and a tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from farfield.datasets.dataset import Sample
from farfield.training.loop import Trainer
from farfield.training.losses import loss_of


def clusters(n: int = 12, seed: int = 0, stress: bool = False) -> list[Atoms]:
    """Return water-like clusters with Lennard-Jones energies and forces."""
    rng = np.random.default_rng(seed)
    frames = []
    for index in range(n):
        symbols = "OHH" if index % 3 else "OHHO"
        base = np.array([[0, 0, 0], [1.1, 0, 0], [0, 1.2, 0], [0.3, 0.4, 1.5]])[: 3 + symbols.count("O") - 1]
        atoms = Atoms(symbols, positions=base + 0.06 * rng.normal(size=base.shape))
        if stress:
            atoms.set_cell(np.diag([7.0, 7.5, 8.0]))
            atoms.pbc = True
        atoms.calc = LennardJones(epsilon=0.2, sigma=0.9, rc=3.0, smooth=True)
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if stress:
            results["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["label"] = "odd" if index % 2 else "even"
        atoms.info["distance"] = float(n - index)
        frames.append(atoms)
    return frames


def write_clusters(folder: Path, **options: Any) -> Path:
    """Write the clusters to a file."""
    path = folder / "clusters.extxyz"
    write(path, clusters(**options))
    return path


def small_config(data: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a training of seconds."""
    return {
        "name": "small",
        "seed": 3,
        "threads": 1,
        "epochs": 4,
        "batch_size": 2,
        "output": str(output),
        "data": {"train": str(data), "split": {"count": 3}},
        "model": {
            "backbone": {
                "kind": "cace",
                "cutoff": 3.0,
                "n_bessel": 3,
                "n_radial": 2,
                "n_embedding": 2,
                "max_l": 1,
                "max_nu": 2,
                "n_layers": 0,
                "n_features": 6,
                "n_hidden": [6],
            },
            "long_range": {"n_hidden": [6]},
        },
        "loss": {"stages": [{"energy": 1, "forces": 10}, {"from_epoch": 2, "energy": 10, "forces": 10}]},
        "optimizer": {
            "learning_rate": 0.01,
            "warmup_steps": 3,
            "decay": {"kind": "plateau", "patience": 1, "threshold": 0.5},
            "ema": 0.9,
        },
        **changes,
    }


def loss_in(trainer: Trainer, sample: Sample) -> torch.Tensor:
    """Loss of a sample, by the weights that the trainer has now."""
    module = trainer.module
    errors = module.errors(trainer.potential, sample, create_graph=True)
    return loss_of(errors, module.weights, module.loss_config)


def fit(trainer: Trainer, sample: Sample, steps: int) -> float:
    """Take so many plain steps on one sample; return the loss before the last."""
    optimizer = torch.optim.Adam(trainer.potential.parameters(), lr=0.02)
    loss = torch.full((), torch.nan)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_in(trainer, sample)
        loss.backward()
        optimizer.step()
    return loss.item()


def slopes_of(trainer: Trainer, sample: Sample) -> tuple[float, float]:
    """Slope of the loss along a random direction of all parameters: by gradients, and by differences."""
    parameters = [p for p in trainer.potential.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss_in(trainer, sample), parameters, allow_unused=True, materialize_grads=True)
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((g * s).sum()) for g, s in zip(gradients, steps, strict=True))
    values = []
    for size in (1e-5, -2e-5):
        with torch.no_grad():
            for parameter, step in zip(parameters, steps, strict=True):
                parameter += size * step
        values.append(loss_in(trainer, sample).item())
    return slope, (values[0] - values[1]) / 2e-5
