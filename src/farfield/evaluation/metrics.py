"""Error measures of one quantity, as the literature and the report name them.

All of them pool whatever they are given: Cartesian components, atoms and systems count alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class Metrics:
    """How well one quantity is predicted.

    Attributes
    ----------
    unit
        Unit of the errors.
    mae
        Mean absolute error.
    rmse
        Root of the mean squared error.
    r2
        1 − SS_res/SS_tot, SS_tot about the mean of the reference. None where the reference is constant.
    pearson_r2
        Squared correlation coefficient, blind to scale and offset: what papers call r². None where the reference or the
        prediction is constant.
    count
        Number of values that were pooled.
    rmse_centred
        The RMSE that is left when the mean error is taken off; given for energies, whose zero is a convention.
    """

    unit: str
    mae: float
    rmse: float
    r2: float | None
    pearson_r2: float | None
    count: int
    rmse_centred: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return what stands in the JSON file: unit, mae, rmse, r2, pearson_r2, and rmse_centred where it is given."""
        entry: dict[str, Any] = {
            "unit": self.unit,
            "mae": self.mae,
            "rmse": self.rmse,
            "r2": self.r2,
            "pearson_r2": self.pearson_r2,
        }
        if self.rmse_centred is not None:
            entry["rmse_centred"] = self.rmse_centred
        return entry


def compute_metrics(
    predicted: Float[np.ndarray, "..."], reference: Float[np.ndarray, "..."], unit: str, *, centred: bool = False
) -> Metrics:
    """Measure the error of ``predicted`` against ``reference``.

    Parameters
    ----------
    predicted, reference
        Arrays of one shape, in ``unit``; all their entries are pooled.
    unit
        Unit of both.
    centred
        Give `Metrics.rmse_centred` too.

    Raises
    ------
    ValueError
        If the shapes differ, the arrays are empty, or an entry is not finite.
    """
    predicted = np.asarray(predicted, dtype=np.float64)
    reference = np.asarray(reference, dtype=np.float64)
    if predicted.shape != reference.shape:
        raise ValueError(
            f"`predicted` has shape {predicted.shape} but `reference` {reference.shape}: compare arrays of one shape"
        )
    if reference.size == 0:
        raise ValueError("`reference` is empty: there is nothing to compare with")
    for name, values in (("predicted", predicted), ("reference", reference)):
        if not np.isfinite(values).all():
            raise ValueError(f"`{name}` has {int((~np.isfinite(values)).sum())} entries that are not finite")

    error = (predicted - reference).ravel()
    deviation = (reference - reference.mean()).ravel()
    spread = (predicted - predicted.mean()).ravel()
    total = float(deviation @ deviation)
    product = total * float(spread @ spread)
    # Rounding leaves a constant array with a tiny variance; a correlation with that would be noise.
    constant = total <= (1e-14 * max(1.0, float(np.abs(reference).max()))) ** 2 * reference.size
    return Metrics(
        unit=unit,
        mae=float(np.abs(error).mean()),
        rmse=float(np.sqrt(error @ error / error.size)),
        r2=None if constant else 1.0 - float(error @ error) / total,
        pearson_r2=None if constant or product == 0 else float(spread @ deviation) ** 2 / product,
        count=int(error.size),
        rmse_centred=float(error.std()) if centred else None,
    )
