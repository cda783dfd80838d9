"""Born charges and polarizabilities of two oxides, by more and more of the model, all trained alike.

    python -m benchmarks.oxides [SiO2] [BaTiO3] [--variants q q+u all labels] [--epochs N] [--seed 1] [--output DIR]
                                [--json FILE]

The configurations are those of the shipped models (``configs/sio2.yaml`` and ``batio3.yaml``: backbone, frames, loss,
rates) with fewer epochs, and with

* ``short``: no far field;
* ``q``: latent charges;
* ``q+u``: latent dipoles, too, as shipped;
* ``all``: quadrupoles, induced dipoles and induced charges besides, self-consistently. Their polarizability is
  only what the model's own response makes of ε∞, which is given as a number here;
* ``labels``: charges, dipoles and anisotropic induced dipoles, self-consistently, which make all of the response
  themselves (``epsilon_infinity: explicit``): polarizabilities of the frames trained on are labels, and Born charges
  in the last third of the epochs.

All but the last see energies, forces and stress only. Judged by the frames at the end of each set, the hottest, which
are kept back; ``random`` are the frames set aside from the others, which choose nothing here. Errors in meV/atom,
meV/Å, e and Å³; r² is Pearson's, squared. ``constant``: the one charge of each element that fits the Born charges
judged by best, and the mean polarizability of the other frames.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.results import gather, mean_charges

from farfield.atoms.structures import read_structures
from farfield.datasets.registry import resolve_data
from farfield.evaluation.evaluate import evaluate
from farfield.model import load
from farfield.training import read_config, train

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

#: Configuration, frames at the end, epochs.
OXIDES = {"SiO2": ("sio2.yaml", 30, 60), "BaTiO3": ("batio3.yaml", 10, 90)}

ALL = {
    "dipoles": True,
    "quadrupoles": True,
    "induced_charges": True,
    "induced_dipoles": True,
    "response": "scf",
}

#: σ = 1.2 Å: there surely is a minimum up to α = 6.5 Å³ of an atom, where BaTiO3 has 3.8 in the mean.
EXPLICIT = {
    "dipoles": True,
    "induced_dipoles": True,
    "anisotropic": True,
    "response": "scf",
    "polarizability_scale": 0.1,
    "smearing": 1.2,
    "nominal_factor": 0.8,
}

VARIANTS: dict[str, dict[str, Any] | None] = {
    "short": None,
    "q": {"dipoles": False},
    "q+u": {},
    "all": ALL,
    "labels": EXPLICIT,
}

#: Weights of the labels beside those of the configuration: small for polarizabilities, which grow with the cell.
LABELS = {"polarizability": 0.02}
LATE_LABELS = {"born_charges": 5}

#: What is compared, and its name in the JSON file.
RESPONSES = {"born_charges": "born", "polarizability": "polarizability"}
JUDGED = {"energy_per_atom": "energy", "forces": "forces", **RESPONSES}


def configuration(oxide: str, variant: str, options: argparse.Namespace) -> Any:
    """Return the configuration of a training."""
    name, _, epochs = OXIDES[oxide]
    count = options.epochs or epochs
    overrides = [
        f"name={oxide}-{variant.replace('+', '-')}",
        f"seed={options.seed}",
        f"epochs={count}",
        f"validate_every={count}",
        "keep=last",
        f"output={options.output}",
    ]
    changes = VARIANTS[variant]
    if changes and changes.get("quadrupoles"):
        overrides.append("model.backbone.n_tensors=8")
    if changes is None:
        overrides.append("model.long_range=null")
    else:
        overrides += [f"model.long_range.{key}={json.dumps(value)}" for key, value in changes.items()]
    if variant == "labels":
        loss = read_config(CONFIGS / name).loss.stages[0].model_dump() | LABELS
        late = {**loss, **LATE_LABELS, "from_epoch": 2 * count // 3}
        overrides += [f"loss.stages={json.dumps([loss, late])}", "model.epsilon_infinity=explicit"]
    return read_config(CONFIGS / name, overrides)


def run(oxide: str, variant: str, options: argparse.Namespace) -> dict[str, float]:
    """Train a variant and judge it; what stands in the JSON file."""
    result = train(configuration(oxide, variant, options), resume=True, quiet=True)
    if result.model is None:
        sys.exit(130)
    kept = OXIDES[oxide][1]
    with warnings.catch_warnings():
        # that a model without a far field has no Born charges is part of the answer
        warnings.simplefilter("ignore", UserWarning)
        found = evaluate(load(result.model), f"oxides/{oxide}", last=kept).comparisons
    row = {"minutes": result.seconds / 60.0, "random_forces_rmse": result.metrics["validation"]["forces_rmse"]}
    row |= {f"{key}_rmse": found[part].metrics.rmse for part, key in JUDGED.items() if part in found}
    row |= {f"{key}_r2": found[part].metrics.pearson_r2 for part, key in RESPONSES.items() if part in found}
    return row


def constant(oxide: str) -> dict[str, float]:
    """Judge one charge of each element, and one polarizability."""
    frames, kept = read_structures(resolve_data(f"oxides/{oxide}")), OXIDES[oxide][1]
    numbers = np.concatenate([frame.numbers for frame in frames[-kept:]])
    born = np.concatenate([frame.arrays["bec"].reshape(-1, 3, 3) for frame in frames[-kept:]])
    for z, charge in mean_charges(numbers, born).items():
        born[numbers == z] -= charge * np.eye(3)
    alpha = np.array([frame.info["polarizability"].ravel() for frame in frames])
    rest = alpha[-kept:] - alpha[:-kept].mean(0)
    return {"born_rmse": float(np.sqrt((born**2).mean())), "polarizability_rmse": float(np.sqrt((rest**2).mean()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oxides", nargs="*", choices=OXIDES, metavar="OXIDE", default=list(OXIDES))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--epochs", type=int, help="instead of those in the script")
    parser.add_argument("--seed", type=int, default=1, help="of the weights and the order of the frames")
    parser.add_argument("--output", type=Path, default=Path("runs/oxides"))
    parser.add_argument("--json", type=Path, help="write the results to this file, too; what it has already is kept")
    options = parser.parse_args()
    runs = []
    for oxide in options.oxides:
        group = f"{oxide}, seed {options.seed}"
        runs.append((group, "constant", partial(constant, oxide)))
        runs += [(group, variant, partial(run, oxide, variant, options)) for variant in options.variants]
    gather(runs, options.json)


if __name__ == "__main__":
    main()
