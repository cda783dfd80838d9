"""Hosts beside each other, each without a far field, with charges, and with multipoles and response, on dipeptides.

    python -m benchmarks.hosts HOST [HOST ...] [--frames 445] [--threads 1] [--output DIR] [--json FILE] [--epochs N]

Small models (`HOSTS`), trained from scratch on energies and forces of 445 frames of dipeptides/train, in as many epochs
for each of the three variants; how many differs among the hosts, so that each takes some ten minutes of one core:

* ``short``: the host alone;
* ``charges``: latent charges, constrained to the total charge, which start from .4 e of each bond and Pauling's
  electronegativity;
* ``multipoles``: these charges, dipoles, quadrupoles, and induced dipoles.

Compared on the 50 other frames of the set (energy, forces, dipoles; meV/atom, meV/Å, r²), and by Born charges of the 54
dipeptides without sulphur of spice/bec (r², RMSE in e), which nothing was trained on. A host runs where its package is
installed (``pip install 'farfield[HOST]'``, or an environment of ``nox -s hosts``); ``cace`` is farfield's own. What is
there already is gone on with, not repeated, so that results of several environments can be put together in one file.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write
from benchmarks.results import gather

from farfield.atoms.structures import read_structures
from farfield.datasets.registry import resolve_data
from farfield.evaluation.evaluate import evaluate
from farfield.files import replacing
from farfield.model import load
from farfield.training import train


@dataclass(frozen=True)
class Host:
    """How a host is trained."""

    #: What is put in the place of `model.backbone`.
    backbone: dict[str, Any]
    epochs: int
    #: The best of two or three after two to six epochs.
    learning_rate: float
    #: Charges start from bonds (`CHARGES`). Where they move freely before the short range has learned, they shrink so
    #: fast that those of some elements end with the other sign (MACE with .05: dipoles of r² .43). TensorNet learns
    #: slowly, and with it charges that cannot move spoil its forces (.0005, .005, .05: dipoles of r² .04, .02, .73).
    charge_scale: float = 0.05


HOSTS = {
    "cace": Host({"kind": "cace", "cutoff": 4.5, "max_nu": 3, "n_layers": 1}, epochs=60, learning_rate=0.02),
    "mace": Host(
        {"host": "mace", "cutoff": 4.5, "hidden_irreps": "64x0e", "max_ell": 2, "correlation": 2},
        epochs=24,
        learning_rate=0.02,
        charge_scale=0.005,
    ),
    "nequip": Host(
        {"host": "nequip", "cutoff": 4.5, "num_layers": 2, "l_max": 1, "num_features": 32},
        epochs=80,
        learning_rate=0.02,
    ),
    "allegro": Host(
        {"host": "allegro", "cutoff": 4.5, "num_layers": 1, "l_max": 1, "num_scalar_features": 64},
        epochs=80,
        learning_rate=0.02,
    ),
    "chgnet": Host(
        {
            "host": "chgnet",
            "cutoff": 4.5,
            "n_conv": 2,
            "atom_fea_dim": 32,
            "bond_fea_dim": 32,
            "angle_fea_dim": 32,
        },
        epochs=24,
        learning_rate=0.01,
    ),
    "matgl": Host(
        # Gaussians as narrow as they are close to each other: with matgl's own width of 0.5 /Å² it hardly learns
        {"host": "matgl", "architecture": "TensorNet", "cutoff": 4.5, "units": 32, "nblocks": 1, "width": 24.0},
        epochs=24,
        learning_rate=0.005,
        charge_scale=0.2,
    ),
}

CHARGES = {"total_charge": "constraint", "bond_charges": 0.4}

VARIANTS: dict[str, dict[str, Any] | None] = {
    "short": None,
    "charges": CHARGES,
    "multipoles": {
        **CHARGES,
        "dipoles": True,
        "quadrupoles": True,
        "induced_dipoles": True,
        "bond_cutoff": 4.5,  # dipoles and quadrupoles also of hosts with scalars only
    },
}

KEPT, SEED = 50, 0


def split(frames: int, folder: Path) -> tuple[Path, Path]:
    """Write the frames to learn from and those kept back, the same for all hosts."""
    paths = folder / f"train-{frames}.extxyz", folder / "kept.extxyz"
    if not all(path.exists() for path in paths):
        folder.mkdir(parents=True, exist_ok=True)
        structures = read_structures(resolve_data("dipeptides/train"))
        order = np.random.default_rng(SEED).permutation(len(structures))
        for path, chosen in zip(paths, (order[KEPT : KEPT + frames], order[:KEPT]), strict=True):
            with replacing(path) as partial:
                write(partial, [structures[i] for i in chosen], format="extxyz")
    return paths


def configuration(host: str, variant: str, data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the configuration of a training."""
    far = VARIANTS[variant]
    if far is not None:
        far = {**far, "charge_scale": HOSTS[host].charge_scale}
    return {
        "name": f"{host}-{variant}",
        "description": f"{host} on dipeptides, {variant} (benchmarks/hosts.py)",
        "licence": "CC0 (the frames are a subset of SPICE)",
        "seed": SEED,
        "threads": options.threads,
        "epochs": options.epochs or HOSTS[host].epochs,
        "batch_size": 4,
        "keep": "last",
        "output": str(options.output),
        "stop": None,
        "data": {"train": str(data), "total_charge": "total_charge"},
        "model": {"backbone": dict(HOSTS[host].backbone), "long_range": far},
        "loss": {"stages": [{"energy": 20, "forces": 1}]},
        "optimizer": {
            "learning_rate": HOSTS[host].learning_rate,
            "warmup_steps": 100,
            "decay": {"kind": "cosine", "minimum": 0.01},
            "clip": 10.0,
            "ema": 0.99,
        },
    }


def run(host: str, variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Train a variant of a host and compare it; what stands in the JSON file."""
    data, kept = split(options.frames, options.output)
    settings = configuration(host, variant, data, options)
    resumed = (options.output / settings["name"]).exists()
    start = time.process_time()
    result = train(settings, resume=True, quiet=True)
    minutes = (time.process_time() - start) / 60.0
    if result.model is None:
        sys.exit(130)
    model = load(result.model)
    found = evaluate(model, read(kept, ":"), quantities=["energy_per_atom", "forces", "dipole"]).comparisons
    row = {
        "parameters": float(sum(values.numel() for values in model.potential.parameters())),
        "energy_rmse": found["energy_per_atom"].metrics.rmse,
        "forces_rmse": found["forces"].metrics.rmse,
    }
    if not resumed:
        row["minutes"] = minutes
    if VARIANTS[variant] is not None:
        row["dipole_r2"] = found["dipole"].metrics.pearson_r2
        born = evaluate(model, peptides(), quantities=["born_charges"]).comparisons["born_charges"].metrics
        row |= {"born_r2": born.pearson_r2, "born_rmse": born.rmse}
    return row


def peptides() -> list[Atoms]:
    """Give the dipeptides with Born charges, those of the elements that are trained on."""
    found = [atoms for atoms in read_structures(resolve_data("spice/bec")) if atoms.info.get("subset") == "dipeptides"]
    return [atoms for atoms in found if set(atoms.symbols) <= {"H", "C", "N", "O"}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", nargs="+", choices=HOSTS, metavar="HOST")
    parser.add_argument("--epochs", type=int, help="instead of the number that stands in the script")
    parser.add_argument("--frames", type=int, default=445)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/hosts"))
    parser.add_argument("--json", type=Path, help="write the results to this file, too; what it has already is kept")
    options = parser.parse_args()
    runs = [(host, name, partial(run, host, name, options)) for host in options.hosts for name in VARIANTS]
    gather(runs, options.json)


if __name__ == "__main__":
    main()
