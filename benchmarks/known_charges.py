"""Known charges: a model that sees energies and forces alone is asked for the charges that made them.

    python -m benchmarks.known_charges [--system gas|electrolyte] [--setting short|long] [--json FILE]

A gas of 64 + 64 point charges of ±1 e with a soft repulsion, or an aqueous electrolyte of fixed charges, flexible SPC
water with Na⁺ and Cl⁻ (``scripts/make_known_charges.py``). The model has nothing but elements and surroundings to tell
the charges from: CACE up to 4.5 Å (3.5 Å in the electrolyte) without messages, and latent charges whose sum is left
free. Energies are even in them; their sign is that of `farfield`'s gauge, the mean of the most electronegative element
negative. Frames are made once per setting and kept in the output folder; a training that is there already is gone on
with, not repeated.

What is written: the mean absolute error of the charges (``charge_mae``, e) over all atoms of frames that were kept
back; mean and standard deviation of the charges of each element (``charges``, e); energy and force errors (meV/atom,
meV/Å); minutes of one processor that the training took, as far as it was done in this run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write

from farfield.datasets.quantities import Columns
from farfield.evaluation.evaluate import evaluate
from farfield.files import write_text
from farfield.model import load
from farfield.training import train

# the data's script, whether this is run as a script or as a module
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))


@dataclass(frozen=True)
class Setting:
    """Numbers of frames to learn from and to keep back, epochs, and the seed of the frames."""

    frames: int
    kept: int
    epochs: int
    seed: int = 0


SETTINGS = {
    "gas": {"short": Setting(frames=90, kept=20, epochs=40), "long": Setting(frames=900, kept=100, epochs=40)},
    "electrolyte": {
        "short": Setting(frames=40, kept=10, epochs=10),
        "long": Setting(frames=1800, kept=100, epochs=80),
    },
}

#: What differs between the models: the electrolyte's short range is short, so that the far field has to be learned, and
#: rich, so that what it errs by does not drown it: in water far fields nearly cancel.
BACKBONES: dict[str, dict[str, Any]] = {
    "gas": {"cutoff": 4.5, "n_bessel": 8, "n_radial": 8, "n_embedding": 2, "max_l": 1, "max_nu": 2, "n_features": 32},
    "electrolyte": {
        "cutoff": 3.5, "n_bessel": 6, "n_radial": 6, "n_embedding": 3, "max_l": 3, "max_nu": 3, "n_features": 64,
    },
}  # fmt: skip
SMEARING = {"gas": 1.0, "electrolyte": 0.8}
LEARNING_RATE = {"gas": 0.02, "electrolyte": 0.01}


def make_frames(system: str, setting: Setting, folder: Path) -> dict[str, Path]:
    """Make frames to learn from, and others to keep back, unless they are there."""
    from make_known_charges import SYSTEMS

    paths = {name: folder / f"{name}.extxyz" for name in ("train", "kept")}
    if not all(path.exists() for path in paths.values()):
        folder.mkdir(parents=True, exist_ok=True)
        write(paths["kept"], SYSTEMS[system](setting.kept, setting.seed + 1), format="extxyz")
        write(paths["train"], SYSTEMS[system](setting.frames, setting.seed), format="extxyz")
    return paths


def configuration(system: str, train_file: Path, output: Path, epochs: int, seed: int = 0) -> dict[str, Any]:
    """Return the configuration of the training."""
    return {
        "name": "model",
        "description": f"known charges of the {system} (benchmarks/known_charges.py)",
        "licence": "MIT",
        "seed": seed,
        "threads": 1,
        "epochs": epochs,
        "batch_size": 4,
        "keep": "last",
        "output": str(output),
        "stop": None,
        "data": {"train": str(train_file)},
        "model": {
            "epsilon_infinity": 1.0,
            "backbone": {
                "kind": "cace",
                "n_layers": 0,
                "n_hidden": [32, 16],
                **BACKBONES[system],
            },
            "long_range": {"smearing": SMEARING[system], "charge_scale": 0.2},
        },
        "loss": {"stages": [{"energy": 20, "forces": 1}]},
        "optimizer": {
            "amsgrad": False,
            "learning_rate": LEARNING_RATE[system],
            "warmup_steps": 50,
            "decay": {"kind": "cosine", "minimum": 0.001},
            "clip": 1.0,
            "ema": 0.99,
        },
    }


def charge_errors(predicted: np.ndarray, known: np.ndarray, symbols: np.ndarray) -> dict[str, Any]:
    """Errors of charges (e), and mean and standard deviation of those of each element."""
    return {
        "charge_mae": float(np.abs(predicted - known).mean()),
        "charges": {
            str(symbol): [float(predicted[symbols == symbol].mean()), float(predicted[symbols == symbol].std())]
            for symbol in np.unique(symbols)
        },
    }


def run(system: str, setting: Setting, output: Path, *, epochs: int | None = None, seed: int = 0) -> dict[str, Any]:
    """Make the frames, train and ask; return what stands in the JSON file."""
    from make_known_charges import COLUMN

    paths = make_frames(system, setting, output)
    kept: list[Atoms] = read(paths["kept"], ":")
    epochs = epochs or setting.epochs
    start = time.process_time()
    result = train(configuration(system, paths["train"], output, epochs, seed), resume=True, quiet=True)
    minutes = (time.process_time() - start) / 60.0
    if result.model is None:
        sys.exit(130)
    compared = evaluate(load(result.model), kept, columns=Columns(charges=(COLUMN,))).comparisons
    symbols = np.concatenate([frame.get_chemical_symbols() for frame in kept])
    found = charge_errors(compared["charges"].predicted.ravel(), compared["charges"].reference.ravel(), symbols)
    found |= {
        "energy_rmse": compared["energy_per_atom"].metrics.rmse,
        "forces_rmse": compared["forces"].metrics.rmse,
        "minutes": minutes,
    }
    return {system: found, "setting": asdict(setting) | {"epochs": epochs, "seed": seed}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=SETTINGS, default="gas")
    parser.add_argument("--setting", choices=SETTINGS["gas"], default="short")
    parser.add_argument("--epochs", type=int, help="instead of those of the setting")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the frames")
    parser.add_argument("--output", type=Path, default=Path("runs/known_charges"))
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    arguments = parser.parse_args()
    result = run(
        arguments.system,
        SETTINGS[arguments.system][arguments.setting],
        arguments.output / arguments.system / arguments.setting,
        epochs=arguments.epochs,
        seed=arguments.seed,
    )
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        write_text(arguments.json, text + "\n")


if __name__ == "__main__":
    main()
