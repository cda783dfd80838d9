"""Checks of energies, stress and single forces against the quick fit, which was made on forces alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from farfield.atoms.batch import AtomicBatch
from farfield.datasets.findings import FORCE_UNITS, Finding, View
from farfield.datasets.quantities import conversion
from farfield.datasets.quickfit import QuickFit

#: Numbers of the fit and of the labels, one beside the other.
Pair = tuple[Float[np.ndarray, " numbers"], Float[np.ndarray, " numbers"]]

#: How much too large energies are beside the work of the forces if units do not belong together.
_RATIOS = (
    ("energies are in kcal/mol and forces in eV/Å", 1.0 / conversion("kcal/mol", "energy")),
    ("energies are in kJ/mol and forces in eV/Å", 1.0 / conversion("kJ/mol", "energy")),
    ("energies are in hartree and forces in eV/Å", 1.0 / conversion("Ha", "energy")),
    ("energies are in rydberg and forces in eV/Å", 1.0 / conversion("Ry", "energy")),
    ("energies are in meV and forces in eV/Å", 1e3),
    ("energies are in eV and forces in meV/Å", 1e-3),
    ("energies are in eV and forces in kcal/mol/Å", conversion("kcal/mol", "energy")),
    ("energies are in eV and forces in kJ/mol/Å", conversion("kJ/mol", "energy")),
    ("energies are in eV and forces in hartree/bohr", 1.0 / conversion("Ha/bohr", "forces")),
    ("energies are in eV and forces in rydberg/bohr", 1.0 / conversion("Ry/bohr", "forces")),
    ("forces are per bohr and energies in the same unit", 1.0 / conversion("bohr", "positions")),
)


def check_against_fit(view: View, fit: QuickFit) -> list[Finding]:
    """Energies and stress against those that the forces imply, and single forces against the fit."""
    if fit.rmse[-1] > 0.4 * fit.spread:
        return []  # a fit that does not know the forces knows nothing else
    energy, stress = _check_energy_unit(view, fit), _check_stress(view, fit)
    if energy and "wrong sign" in energy[0].message:
        stress = []  # if energies and stress both contradict the forces, it is the forces that are wrong
    return energy + stress + _check_fit_outliers(view, fit)


def _slope(
    view: View, fit: QuickFit, rows: list[int], compare: Callable[[list[int]], Pair | None], least: int = 1
) -> tuple[float, float]:
    """Slope of labels against the fit (ratio of their spreads, with sign), and the correlation; zeros if there are few.

    Constants of the elements and a pressure are not in the forces, so that frames are compared within each composition:
    ``compare`` gives, for the rows of one, the numbers of the fit and of the labels without what forces leave open.
    """
    groups: dict[object, list[int]] = {}
    for k in rows:
        groups.setdefault(view.formula(fit.used[k]), []).append(k)
    pairs = [pair for members in groups.values() if (pair := compare(members)) is not None]
    if sum(len(x) for x, _ in pairs) < least:
        return 0.0, 0.0
    x, y = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    norms = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if min(norms) == 0:
        return 0.0, 0.0
    correlation = float(x @ y) / (norms[0] * norms[1])
    return float(np.sign(correlation)) * norms[1] / norms[0], correlation


def _without(values: Float[np.ndarray, "frames ..."], basis: list[np.ndarray]) -> Float[np.ndarray, "frames ..."]:
    """Return values of frames without what goes with some functions of the frame."""
    q, _ = np.linalg.qr(np.stack(basis, axis=1))
    return values - q @ (q.T @ values)


def _check_energy_unit(view: View, fit: QuickFit) -> list[Finding]:
    """Energies differ by the work of the forces: the fit, made on forces alone, knows their scale and sign."""

    def compare(members: list[int]) -> Pair | None:
        samples = [view.samples[fit.used[k]] for k in members]
        volume = np.array([_volume(sample.batch) for sample in samples])
        basis = [np.ones(len(members))]
        if np.ptp(volume) > 1e-4 * volume.mean():  # what goes with the volume is the pressure that forces leave open
            basis += [volume - volume.mean(), (volume - volume.mean()) ** 2]
        if len(members) <= len(basis):
            return None
        energy = np.array([float(sample.labels["energy"][0]) for sample in samples])
        return _without(fit.energies[members], basis), _without(energy, basis)

    rows = [k for k, n in enumerate(fit.used) if "energy" in view.samples[n].labels]
    slope, correlation = _slope(view, fit, rows, compare, least=10)
    if abs(correlation) < 0.8:
        return []
    if slope < 0:
        message = (
            f"energies rise where the forces say they fall (correlation {correlation:.2f}): the forces have the "
            "wrong sign, "
            "as gradients have"
        )
        return [Finding("warning", "units", message)]
    # Energies of a mediocre fit are off by tens of per cent: only factors that units explain are believed.
    explained = [
        (wrong, ratio)
        for wrong, ratio in _RATIOS
        if abs(np.log(slope / ratio)) < (0.35 if abs(np.log(ratio)) > 1.5 else 0.08)
    ]
    if not explained or correlation < 0.9:
        return []
    wrong, ratio = min(explained, key=lambda pair: abs(np.log(slope / pair[1])))
    message = (
        f"energies vary {slope:.3g} times as much as the work of the forces (correlation {correlation:.2f}; "
        f"{ratio:.3g} if "
        f"{wrong}): units of energy and force do not belong together"
    )
    return [Finding("warning", "units", message)]


def _volume(batch: AtomicBatch) -> float:
    return float(batch.cell[0].double().det().abs()) if bool(batch.pbc.all()) else 0.0


def _check_stress(view: View, fit: QuickFit) -> list[Finding]:
    """Stress against that of the fit, which was made on forces alone and so knows its sign and scale.

    Forces leave a constant pressure open (and more where the cell never changes): off-diagonal components are compared
    as they are, diagonal ones by their deviation from the mean of frames of one composition.
    """

    def components(values: list[np.ndarray]) -> np.ndarray:
        stacked = np.stack(values)
        diagonal = _without(np.diagonal(stacked, axis1=1, axis2=2), [np.ones(len(values))])
        return np.concatenate([stacked[:, [0, 0, 1], [1, 2, 2]].ravel(), diagonal.ravel()])

    def compare(members: list[int]) -> Pair | None:
        if len(members) < 2:
            return None
        labels = [view.samples[fit.used[k]].labels["stress"][0].double().numpy() for k in members]
        return components([fit.stresses[k] for k in members]), components(labels)

    rows = [
        k for k, n in enumerate(fit.used) if "stress" in view.samples[n].labels and np.isfinite(fit.stresses[k]).all()
    ]
    if len(rows) < 4:
        return []
    slope, correlation = _slope(view, fit, rows, compare)
    if abs(correlation) < 0.6:
        return []
    if slope < 0:
        message = (
            f"the stress runs against that which the forces imply (correlation {correlation:.2f}): its sign looks "
            "flipped; "
            "farfield and ASE count tension as positive (`conventions.stress: compressive` turns it)"
        )
        if abs(np.log(-slope)) > np.log(3.0):
            message += f"; its scale is off too, by a factor of {-slope:.3g}"
        return [Finding("warning", "stress", message)]
    if abs(np.log(slope)) < np.log(3.0):
        return []
    volume = float(np.median([_volume(view.samples[fit.used[k]].batch) for k in rows]))
    candidates = {f"the stress is in {unit}": 1.0 / conversion(unit, "stress") for unit in ("GPa", "kbar", "bar")}
    candidates["the stress is a virial (eV), not divided by the volume"] = volume
    candidates |= {f"the forces are in {unit}": conversion(unit, "forces") for unit in FORCE_UNITS}
    likely = min(candidates, key=lambda unit: abs(np.log(slope / candidates[unit])))
    message = (
        f"the stress is {slope:.3g} times that which the forces imply (correlation {correlation:.2f}); it would be "
        f"{candidates[likely]:.3g} times if {likely}"
    )
    return [Finding("warning", "stress", message)]


def _check_fit_outliers(view: View, fit: QuickFit) -> list[Finding]:
    """Look for forces of usual size that are nevertheless far from the fit."""
    everything = np.concatenate(fit.force_errors)
    limit = 8.0 * float(np.quantile(everything, 0.99))
    odd = [n for n, errors in zip(fit.used, fit.force_errors, strict=True) if errors.max() > limit]
    if not odd:
        return []
    message = (
        f"forces of {view.frames(odd)} differ from the quick fit by more than eight times the 99th percentile of its "
        "errors: look at these frames"
    )
    return [Finding("warning", "forces", message, view.numbers_of(sorted(odd)))]
