"""One system's prediction beside its label, in the units and about the origin of the report."""

from __future__ import annotations

import numpy as np

from farfield.datasets.dataset import Dataset, Sample
from farfield.evaluation.comparison import QUANTITIES, Comparison
from farfield.evaluation.labels import (
    UPPER,
    QuadrupoleOrigin,
    best_shift,
    label_origin,
    shifted_quadrupole,
    traceless,
)


def compare(key: str, index: int, sample: Sample, predicted: np.ndarray, origin: QuadrupoleOrigin) -> Comparison:
    """Prediction and label of one system."""
    quantity = QUANTITIES[key]
    reference = sample.labels[quantity.label].double().numpy()
    numbers = np.zeros(0, dtype=np.int64)
    if key == "energy_per_atom":
        predicted, reference = predicted / sample.batch.n_atoms, reference / sample.batch.n_atoms
    if key == "quadrupole":
        predicted = traceless(predicted.reshape(3, 3))
        reference = traceless(_central_quadrupole(sample, reference[0], predicted, origin, index))[UPPER]
        predicted = predicted[UPPER]
    if quantity.per_atom:
        numbers = sample.batch.numbers.numpy()
    count = sample.batch.n_atoms if quantity.per_atom else 1
    return Comparison(
        key,
        quantity.scale * predicted.reshape(count, -1),
        quantity.scale * reference.reshape(count, -1),
        np.full(count, index),
        numbers,
    )


def _central_quadrupole(
    sample: Sample, moment: np.ndarray, predicted: np.ndarray, origin: QuadrupoleOrigin, index: int
) -> np.ndarray:
    """Raw second moment, carried over to the geometric centre."""
    if origin == "centre":
        return moment
    from ase.data import atomic_masses

    if "dipole" not in sample.labels:
        raise ValueError(
            f"structure {index} has a quadrupole label about {origin!r} but no dipole label, which is needed to "
            "carry it "
            "over to the geometric centre: map the dipole column, or take quadrupole_origin='centre'"
        )
    positions = sample.batch.positions.double().numpy()
    charge = _total_charge(sample)
    dipole = sample.labels["dipole"][0].double().numpy()
    if origin == "unknown":
        if charge != 0:
            raise ValueError(
                f"structure {index} is charged ({charge:g} e): quadrupole_origin='unknown' is for neutral systems"
            )
        return shifted_quadrupole(moment, dipole, 0.0, best_shift(predicted - traceless(moment), dipole))
    point = label_origin(positions, atomic_masses[sample.batch.numbers.numpy()], origin)
    return shifted_quadrupole(moment, dipole, charge, point - positions.mean(axis=0))


def check_origin(comparison: Comparison, data: Dataset) -> str | None:
    """Say so if quadrupole labels fit much better about origins other than the geometric centre."""
    neutral = [
        row
        for row, index in enumerate(comparison.system)
        if "dipole" in data[int(index)].labels and _total_charge(data[int(index)]) == 0
    ]
    if len(neutral) < 5:
        return None
    error = comparison.predicted[neutral] - comparison.reference[neutral]
    left = []
    for row, difference in zip(neutral, error, strict=True):
        dipole = data[int(comparison.system[row])].labels["dipole"][0].double().numpy()
        tensor = np.zeros((3, 3))
        tensor[UPPER] = difference
        tensor = tensor + tensor.T - np.diag(np.diag(tensor))
        left.append(
            traceless(tensor - shifted_quadrupole(np.zeros((3, 3)), dipole, 0.0, best_shift(tensor, dipole)))[UPPER]
        )
    before, after = float(np.sqrt((error**2).mean())), float(np.sqrt(np.square(left).mean()))
    # An origin takes away up to three of five components: √(2/5) = .63 is left of an error of any other kind.
    if before < 1e-3 or after > 0.4 * before:
        return None
    return (
        f"Quadrupole: with the origin of each label free the RMSE falls from {before:.3g} to {after:.3g} e·Å²: the "
        "labels "
        "seem to be about other points than the geometric centre (quadrupole_origin, --quadrupole-origin unknown)"
    )


def _total_charge(sample: Sample) -> float:
    """Total charge of one system (e), 0 where it is not known."""
    charge = sample.batch.total_charge
    return 0.0 if charge is None else float(charge[0])
