"""From labels as files hold them to what a model is compared with, and checks of their conventions.

A model that predicts a quantity well knows its unit, sign and index order: labels that fit much better after a
transposition, a change of sign or a conversion of unit are reported, never changed silently.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float

from farfield.datasets.quantities import conversion
from farfield.evaluation.comparison import Comparison

QuadrupoleOrigin = Literal["centre", "mass", "zero", "unknown"]

#: Upper triangle of a 3×3 tensor: xx, xy, xz, yy, yz, zz.
UPPER = np.triu_indices(3)

#: Units in which labels are met although they should not be, by quantity.
_SUSPECTS = {
    "energy_per_atom": ("kcal/mol", "kJ/mol", "Ha", "Ry"),
    "forces": ("kcal/mol/Å", "kJ/mol/Å", "Ha/bohr", "Ry/bohr", "Ha/Å", "eV/bohr"),
    "stress": ("GPa", "kbar"),
    "dipole": ("Debye", "e·bohr"),
    "quadrupole": ("Debye·Å", "e·bohr²"),
}


def traceless(tensors: Float[np.ndarray, "*systems 3 3"]) -> Float[np.ndarray, "*systems 3 3"]:
    """Take a third of the trace off the diagonal."""
    return tensors - np.trace(tensors, axis1=-2, axis2=-1)[..., None, None] / 3.0 * np.eye(3)


def shifted_quadrupole(
    second_moment: Float[np.ndarray, "3 3"],
    dipole: Float[np.ndarray, "3"],
    total_charge: float,
    shift: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "3 3"]:
    """Second moment about another origin.

    With r counted from o in M and µ, and from c = o − shift in the result,
    Σ q (r + s)(r + s) = M + µ⊗s + s⊗µ + q s⊗s.

    Parameters
    ----------
    second_moment
        M = Σ q r⊗r about the old origin (e·Å²).
    dipole
        µ = Σ q r about the old origin (e·Å).
    total_charge
        q (e).
    shift
        Old origin minus new one (Å).
    """
    return second_moment + np.outer(dipole, shift) + np.outer(shift, dipole) + total_charge * np.outer(shift, shift)


def label_origin(
    positions: Float[np.ndarray, "atoms 3"], masses: Float[np.ndarray, " atoms"], origin: str
) -> Float[np.ndarray, "3"]:
    """Point that second moments are counted from: geometric centre, centre of mass, or zero of the coordinates (Å).

    Raises
    ------
    ValueError
        If ``origin`` is none of these.
    """
    if origin == "centre":
        return positions.mean(axis=0)
    if origin == "mass":
        return masses @ positions / masses.sum()
    if origin == "zero":
        return np.zeros(3)
    raise ValueError(f"`quadrupole_origin` is {origin!r} but must be one of 'centre', 'mass', 'zero', 'unknown'")


def best_shift(difference: Float[np.ndarray, "3 3"], dipole: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"]:
    """Shift s of the origin that explains most of a traceless difference D of quadrupoles of a neutral system.

    Least squares of µ⊗s + s⊗µ − ⅔ µ·s 1 = D: three unknowns, five equations, so that two of the five components (and
    more where µ is small) still compare the quadrupoles themselves.
    """
    columns = [traceless(np.outer(dipole, axis) + np.outer(axis, dipole))[UPPER] for axis in np.eye(3)]
    shift, *_ = np.linalg.lstsq(np.stack(columns, axis=1), difference[UPPER], rcond=1e-6)
    return shift


def check_born_order(comparison: Comparison) -> str | None:
    """Say so if the transposed labels fit the predicted Born charges much better.

    The difference of the two orders is all in the antisymmetric part of each tensor. "Much better" is: the
    antisymmetric parts are anticorrelated, r < −½, and the RMSE falls by a tenth at least.
    """
    predicted = comparison.predicted.reshape(-1, 3, 3)
    reference = comparison.reference.reshape(-1, 3, 3)
    transposed = np.swapaxes(reference, 1, 2)
    as_given = float(np.sqrt(((predicted - reference) ** 2).mean()))
    other = float(np.sqrt(((predicted - transposed) ** 2).mean()))
    ours = (predicted - np.swapaxes(predicted, 1, 2)).ravel()
    theirs = (reference - transposed).ravel()
    norm = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    if norm == 0 or ours @ theirs / norm > -0.5 or other > 0.9 * as_given:
        return None
    return (
        f"the Born charges fit much better with their indices exchanged (RMSE {other:.3g} e instead of "
        f"{as_given:.3g} e): "
        "the file seems to hold the other index order; set `born_order` (--born-order) to the other of "
        "'displacement-first' and 'polarization-first'"
    )


def check_scale(comparison: Comparison) -> str | None:
    """Say so if the labels look like the prediction in another unit or with the other sign.

    The slope of labels against predictions must lie within 7 % of that of a known unit, with a squared correlation
    above ½, and must not be near one. Energies are compared as they are, with their references, and need a correlation
    of .99: across compositions they say nothing about a sign.
    """
    predicted, reference = comparison.predicted.ravel(), comparison.reference.ravel()
    product = float(np.linalg.norm(predicted) * np.linalg.norm(reference))
    if product == 0 or predicted.size < 6:
        return None
    correlation = float(predicted @ reference) / product
    if correlation**2 < 0.5 or (comparison.key == "energy_per_atom" and correlation < 0.99):
        return None
    # geometric mean of the two regressions: noise in either side does not pull it to zero
    slope = float(np.sign(correlation) * np.linalg.norm(reference) / np.linalg.norm(predicted))
    title = comparison.quantity.title
    if comparison.key in ("dipole", "charges", "born_charges", "quadrupole") and slope < 0:
        return (
            f"{title}: labels and predictions have opposite signs (correlation {correlation:.2f}): either the labels "
            "use "
            "another sign, or the sign gauge stored in the model is wrong"
        )
    if slope < 0:
        hint = " or set `stress_sign` (--stress-sign compressive)" if comparison.key == "stress" else ""
        return (
            f"{title}: labels and predictions have opposite signs (correlation {correlation:.2f}): "
            f"check the sign of the labels{hint}"
        )
    for unit in _SUSPECTS.get(comparison.key, ()):
        label = comparison.quantity.label
        ratio = 1.0 / conversion(unit, label)
        if abs(np.log(slope / ratio)) < 0.07 and abs(np.log(ratio)) > 0.25:
            return (
                f"{title}: labels are {slope:.3g} times the predictions, as if they were in {unit}: "
                f"state the unit of the labels (--unit {label}={unit})"
            )
    return None
