"""Which truth does a model find that is shown energies and forces only? A test where everything is known.

    python -m benchmarks.truth [--setting short|long] [--configurations q q+u ...] [--json FILE] [--output runs/truth]

The truth is a polarizable force field (AMOEBA water and ions, ``scripts/make_polarizable.py``: atomic charges,
dipoles, quadrupoles, and induced dipoles that feel each other). Models with more and more of these learn its energies
and forces, all with the same backbone, frames, seed and number of epochs, and are then asked for dipole, Born charges
and polarizability of clusters that were kept back. The sign of the charges needs no choice: the total charges, which
every model is given, fix it. Frames are made once per setting and kept in the output folder; trainings that are there
already are gone on with, not repeated. Needs OpenMM (``pip install farfield[peptides]``).

What is written, for each configuration: coefficient of determination (``_r2``, 1 − SS_res/SS_tot) and RMSE of dipole
(e·Å), Born charges (e) and polarizability (Å³; ``anisotropy``: its traceless part), squared Pearson correlations
(``_pearson_r2``), energy and force errors (meV/atom, meV/Å) and minutes of training. Models without response have no
polarizability: null. ``constant``, for comparison: the one Born charge of each element that fits the kept frames
best, the dipoles that such charges would have, and the one polarizability of each element that fits best.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

from farfield.evaluation.evaluate import Evaluation, evaluate
from farfield.evaluation.metrics import compute_metrics
from farfield.files import write_text
from farfield.model import load
from farfield.training import train

# the data's script and the other benchmarks, whether this is run as a script or as a module
sys.path[:0] = [str(Path(__file__).resolve().parent.parent / "scripts"), str(Path(__file__).resolve().parent)]

from results import mean_charges  # noqa: E402

#: What each configuration adds to charges. The truth's induced dipoles feel each other, so response is self-consistent.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "q": {},
    "q+u": {"dipoles": True},
    "q+Q": {"quadrupoles": True},
    "q+kappa": {"induced_charges": True, "response": "scf"},
    "q+alpha": {"induced_dipoles": True, "response": "scf"},
    "all": {
        "dipoles": True,
        "quadrupoles": True,
        "induced_charges": True,
        "induced_dipoles": True,
        "anisotropic": True,
        "response": "scf",
    },
}

#: Key of the evaluation, name in the JSON file.
ANSWERS = {"dipole": "dipole", "born_charges": "born", "polarizability": "polarizability"}


@dataclass(frozen=True)
class Setting:
    """Numbers of frames to learn from and to keep back, epochs of each training, and the first seed of the frames."""

    clusters: int
    boxes: int
    kept: int
    epochs: int
    seed: int = 0


SETTINGS = {
    "short": Setting(clusters=240, boxes=12, kept=60, epochs=36),
    "long": Setting(clusters=480, boxes=24, kept=90, epochs=240, seed=2),
}


def make_frames(setting: Setting, folder: Path) -> dict[str, Path]:
    """Make frames to learn from, and others to keep back, unless they are there."""
    from make_polarizable import boxes, clusters

    paths = {name: folder / f"{name}.extxyz" for name in ("train", "kept")}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        write(paths["kept"], clusters(setting.kept, setting.seed + 1, answers=True), format="extxyz")
        write(
            paths["train"],
            clusters(setting.clusters, setting.seed) + boxes(setting.boxes, setting.seed),
            format="extxyz",
        )
    return paths


def configuration(name: str, train_file: Path, output: Path, epochs: int, seed: int = 0) -> dict[str, Any]:
    """Return the configuration of one training."""
    return {
        "name": name.replace("+", "-"),
        "description": f"truth test, {name} (benchmarks/truth.py)",
        "licence": "MIT",
        "seed": seed,
        "threads": 1,
        "epochs": epochs,
        "batch_size": 8,
        "keep": "last",
        "output": str(output),
        "stop": None,
        "data": {"train": str(train_file), "total_charge": "total_charge"},
        "model": {
            "backbone": {
                "kind": "cace",
                "cutoff": 4.0,
                "n_bessel": 6,
                "n_radial": 6,
                "n_embedding": 3,
                "max_l": 2,
                "max_nu": 3,
                "n_layers": 0,
                "n_features": 48,
                "n_hidden": [32, 16],
                "n_vectors": 8,
                "n_tensors": 8,
            },
            "long_range": {
                # A wider charge halves the field of a neighbor at 2 Å, and α comes out larger for that. Not narrower:
                # self-consistent response surely has a minimum up to α = 1.9 Å³ only, where water has .84 and .50.
                "smearing": 0.8,
                "charge_scale": 0.05,
                # Response starts from little: energies tell slowly that there is less of it, and a softness that was
                # there at the start lets charge flow through a whole cluster.
                "softness_scale": 0.0002,
                "polarizability_scale": 0.02,
                "total_charge": "constraint",
                # What a chemist knows. Without, an ion may start with the wrong sign, while its water makes up for it
                # and for the total charge; hundreds of steps later it is still there.
                "nominal_charges": {"Na": 1.0, "K": 1.0, "Cl": -1.0},
                # invariants alone: with lengths of vectors and tensors, too, charges were noisier
                "first_scalars": 48,
                **CONFIGURATIONS[name],
            },
        },
        # the loss has to see by how much a constraint mends the total charge: see docs/benchmarks/truth.md
        "loss": {"stages": [{"energy": 20, "forces": 1, "total_charge": 20}]},
        "optimizer": {
            "amsgrad": False,
            "learning_rate": 0.02,
            "warmup_steps": 50,
            "decay": {"kind": "cosine", "minimum": 0.01},
            "clip": 1.0,
            "ema": 0.99,
        },
    }


def scores(name: str, predicted: np.ndarray, reference: np.ndarray, unit: str) -> dict[str, float | None]:
    """R², squared correlation and RMSE of one quantity, all components pooled."""
    metrics = compute_metrics(predicted, reference, unit)
    return {f"{name}_r2": metrics.r2, f"{name}_pearson_r2": metrics.pearson_r2, f"{name}_rmse": metrics.rmse}


def traceless(values: np.ndarray) -> np.ndarray:
    """Return the traceless part of matrices, shape (systems, 9)."""
    matrices = values.reshape(-1, 3, 3)
    return matrices - matrices.trace(axis1=1, axis2=2)[:, None, None] / 3.0 * np.eye(3)


def answers_of(evaluation: Evaluation) -> dict[str, float | None]:
    """Return what stands in the JSON file for one configuration."""
    found: dict[str, float | None] = {}
    for key, name in ANSWERS.items():
        compared = evaluation.comparisons.get(key)
        if compared is None:
            found |= dict.fromkeys((f"{name}_r2", f"{name}_pearson_r2", f"{name}_rmse"))
            continue
        found |= scores(name, compared.predicted, compared.reference, compared.quantity.unit)
        if key == "polarizability":
            pair = traceless(compared.predicted), traceless(compared.reference)
            found |= scores("anisotropy", *pair, compared.quantity.unit)
    found["energy_rmse"] = evaluation.comparisons["energy_per_atom"].metrics.rmse
    found["forces_rmse"] = evaluation.comparisons["forces"].metrics.rmse
    return found


def constant_answers(frames: Sequence[Atoms]) -> dict[str, float | None]:
    """Scores of one Born charge and one polarizability for each element, fitted to the frames they are judged by."""
    numbers = np.concatenate([frame.numbers for frame in frames])
    born = np.concatenate([frame.arrays["bec"].reshape(-1, 3, 3) for frame in frames])
    charge = mean_charges(numbers, born)
    counts = np.array([[(frame.numbers == z).sum() for z in charge] for frame in frames], dtype=float)
    truth = np.array([frame.info["polarizability"].reshape(3, 3) for frame in frames])
    share = np.linalg.lstsq(counts, truth.trace(axis1=1, axis2=2) / 3.0, rcond=None)[0]
    dipoles = [sum(charge[int(z)] * r for z, r in zip(frame.numbers, frame.positions, strict=True)) for frame in frames]
    one = np.eye(3)
    found = scores("dipole", np.array(dipoles), np.array([frame.info["ref_dipole"] for frame in frames]), "e·Å")
    found |= scores("born", np.array([charge[int(z)] * one for z in numbers]), born, "e")
    found |= scores("polarizability", (counts @ share)[:, None, None] * one, truth, "Å³")
    return found


def run(
    setting: Setting, names: Sequence[str], output: Path, *, epochs: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Make the frames, train and ask; return what stands in the JSON file."""
    paths = make_frames(setting, output)
    kept = read(paths["kept"], ":")
    epochs = epochs or setting.epochs
    found: dict[str, Any] = {}
    for name in names:
        config = configuration(name, paths["train"], output, epochs, seed)
        result = train(config, resume=True, quiet=True)
        if result.model is None:
            sys.exit(130)
        with warnings.catch_warnings():
            # that a model without response has no polarizability is part of the answer
            warnings.simplefilter("ignore", UserWarning)
            evaluation = evaluate(load(result.model), kept, name=name)
        found[name] = answers_of(evaluation) | {"minutes": result.seconds / 60.0}
        print(line(name, found[name]), flush=True)
    return {
        "configurations": found,
        "constant": constant_answers(kept),
        "setting": {"clusters": setting.clusters, "boxes": setting.boxes, "kept": setting.kept}
        | {"epochs": epochs, "seed": seed},
    }


COLUMNS = (
    *(f"{name}_{measure}" for name in ANSWERS.values() for measure in ("r2", "rmse")),
    *("anisotropy_r2", "energy_rmse", "forces_rmse", "minutes"),
)


def line(name: str, values: dict[str, float | None]) -> str:
    """Return one line of the table."""
    cells = [values.get(column) for column in COLUMNS]
    return f"| `{name}` | " + " | ".join("–" if cell is None else f"{cell:.3f}" for cell in cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", choices=SETTINGS, default="short")
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=list(CONFIGURATIONS))
    parser.add_argument("--epochs", type=int, help="instead of those of the setting")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the frames")
    parser.add_argument("--output", type=Path, default=Path("runs/truth"))
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    arguments = parser.parse_args()
    setting = SETTINGS[arguments.setting]
    print("| | " + " | ".join(COLUMNS) + " |")
    folder = arguments.output / arguments.setting
    result = run(setting, arguments.configurations, folder, epochs=arguments.epochs, seed=arguments.seed)
    print(line("constant", result["constant"]))
    if arguments.json:
        write_text(arguments.json, json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
