"""How many harmonics Born charges of a periodic cell need, against those of cells that are repeated as far as needed.

    python -m benchmarks.born_harmonics MODEL [MODEL ...] [--frames 2] [--json FILE] [--figure FILE]

For each model, and M = 1 … 6 harmonics of either kind ("flat": the maximally flat combination, "radius": fitted on the
model's receptive radius; M = 1 is the published formula):

* ``cell``: root of the mean square of Z*(M) − Z*(exact), over that of Z*(exact), in cells of 64 water molecules
  (water/pbe0ts, the last frames of the file);
* ``labels``: RMSE (e) of Z*(M) against DFT, 5 frames of 128 molecules (water/rpbe-d3-bec), and r² and slope of the fit
  through the origin for the exact ones.

Exact: `Model.compute(..., exact=True)`. A model whose card knows no ε∞ is compared with 1.78, the experiment's.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from farfield.evaluation.reading import read_labelled
from farfield.files import write_text
from farfield.model import Model, load

FITS, HARMONICS = ("flat", "radius"), range(1, 7)
EXPERIMENT = 1.78


def born(model: Model, batch: Any, **options: Any) -> np.ndarray:
    if model.card.epsilon_infinity is None:
        options["epsilon_infinity"] = EXPERIMENT
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # too long a radius: what is measured here
        return np.asarray(model.compute(batch, ["born_charges"], **options)["born_charges"])


def compared(model: Model, frames: int) -> dict[str, Any]:
    """Both comparisons of a model."""
    small = [sample.batch for sample in read_labelled("water/pbe0ts", last=frames)]
    labelled = list(read_labelled("water/rpbe-d3-bec"))
    known = np.concatenate([np.asarray(sample.labels["born_charges"]) for sample in labelled])
    exact = [born(model, batch, exact=True) for batch in small]
    whole = np.concatenate([born(model, sample.batch, exact=True) for sample in labelled])
    found: dict[str, Any] = {
        "receptive_radius": float(model.potential.receptive_radius),
        "cell": {fit: [] for fit in FITS},
        "labels": {fit: [] for fit in FITS},
        "labels_exact": float(np.sqrt(np.mean((whole - known) ** 2))),
        "labels_r2": float(np.corrcoef(whole.ravel(), known.ravel())[0, 1] ** 2),
        "labels_slope": float((whole * known).sum() / (known**2).sum()),
    }
    size = np.sqrt(np.mean([np.mean(one**2) for one in exact]))
    for fit in FITS:
        for m in HARMONICS:
            off = [
                np.mean((born(model, batch, harmonics=m, fit=fit) - one) ** 2)
                for batch, one in zip(small, exact, strict=True)
            ]
            found["cell"][fit].append(float(np.sqrt(np.mean(off)) / size))
            values = np.concatenate([born(model, sample.batch, harmonics=m, fit=fit) for sample in labelled])
            found["labels"][fit].append(float(np.sqrt(np.mean((values - known) ** 2))))
    return found


def draw(results: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.0, 3.6), layout="constrained")
    for number, (name, found) in enumerate(results.items()):
        for fit, line in zip(FITS, ("--", "-"), strict=True):
            label = f"{name} ({found['receptive_radius']:.1f} Å), {fit}"
            left.semilogy(HARMONICS, 100 * np.array(found["cell"][fit]), f"o{line}", color=f"C{number}", label=label)
            right.plot(HARMONICS, found["labels"][fit], f"o{line}", color=f"C{number}")
        right.axhline(found["labels_exact"], color=f"C{number}", linewidth=0.8)
    left.axhline(1.0, color="grey", linewidth=0.8)
    left.set(xlabel="harmonics", ylabel="off the supercell's (%)", title="64 water molecules, 12.4 Å")
    left.legend(fontsize=7)
    right.set(xlabel="harmonics", ylabel="RMSE (e)", title="128 molecules, against DFT (line: exact)")
    right.set_ylim(bottom=0)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--frames", type=int, default=2, help="cells of 64 molecules that are repeated")
    parser.add_argument("--json", type=Path, help="write the results to this file, too")
    parser.add_argument("--figure", type=Path)
    options = parser.parse_args()
    results = {
        Path(name).parent.name or name: compared(load(name, dtype=torch.float64), options.frames)
        for name in options.models
    }
    text = json.dumps(results, indent=2)
    print(text)
    if options.json:
        write_text(options.json, text + "\n")
    if options.figure:
        draw(results, options.figure)


if __name__ == "__main__":
    main()
