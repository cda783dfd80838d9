"""Checks of energies and forces: units, signs, outliers, sums."""

from __future__ import annotations

import numpy as np

from farfield.atoms.neighbors import find_neighbors
from farfield.datasets.dataset import LABEL_SHAPES
from farfield.datasets.findings import FORCE_UNITS, Finding, View
from farfield.datasets.quantities import conversion

#: Stretching force constants of C–H, N–H and O–H bonds are 30 to 50 eV/Å² (harmonic 2900 to 3800 1/cm).
_STRETCH = 40.0


def check_missing(view: View) -> list[Finding]:
    """Labels that only some frames have."""
    total = len(view.samples)
    having = {label: len(view.with_label(label)) for label in LABEL_SHAPES}
    partly = {label: count for label, count in having.items() if 0 < count < total}
    found = []
    if partly:
        listed = ", ".join(f"{label} in {count} of {total}" for label, count in partly.items())
        found.append(Finding("note", "labels", f"only some frames have these labels: {listed}"))
    if not having["energy"] and not having["forces"]:
        message = "no energies and no forces were found: map their names with `columns`, if they have others"
        found.append(Finding("note", "labels", message))
    return found


def check_energies(view: View) -> list[Finding]:
    """Energies against a sum over elements, fitted robustly: single frames far off, in units of the usual spread."""
    having = view.with_label("energy")
    if len(having) < 8:
        return []
    elements = sorted({z for n in having for z, _ in view.formula(n)})
    counts = np.array([[dict(view.formula(n)).get(z, 0) for z in elements] for n in having], dtype=float)
    atoms = counts.sum(axis=1)
    energies = np.array([float(view.samples[n].labels["energy"][0]) for n in having])
    kept = np.ones(len(having), dtype=bool)
    error = np.zeros(len(having))
    # Where nearly every frame is another molecule, kinds of bonds make tails of their own.
    limit = 12 if len({view.formula(n) for n in having}) < len(having) / 4 else 40
    # Large offsets and a single wrong frame both wreck a plain fit: refit without what stands out.
    for _ in range(4):
        if kept.sum() <= len(elements) + 2:
            return []
        weights, *_ = np.linalg.lstsq(counts[kept] / atoms[kept, None], energies[kept] / atoms[kept], rcond=1e-10)
        error = energies / atoms - counts @ weights / atoms
        spread = 1.4826 * np.median(np.abs(error[kept] - np.median(error[kept])))
        kept = np.abs(error - np.median(error)) < limit * max(spread, 1e-4)
    odd = [having[n] for n in np.flatnonzero(~kept)]
    if not odd or len(odd) > 0.05 * len(having):
        return []
    worst = float(np.abs(error - np.median(error)).max())
    message = (
        f"the energies of {view.frames(odd)} lie up to {worst:.3g} eV/atom from what their composition gives; the "
        "usual "
        f"spread is {spread:.2g} eV/atom"
    )
    return [Finding("warning", "energies", message, view.numbers_of(odd))]


def stretch_constant(view: View) -> tuple[float, int] | None:
    """Force constant of X–H bonds (X = C, N, O; in the labels' force unit per Å) and the number of bonds.

    The slope of the force on H along its bond against the length of the bond, each kind of X about its own mean. None
    where there are fewer than 20 bonds, or bonds that do not vary.
    """
    lengths: dict[int, list[float]] = {6: [], 7: [], 8: []}
    pulls: dict[int, list[float]] = {6: [], 7: [], 8: []}
    for n in view.with_label("forces")[:400]:
        sample = view.samples[n]
        batch = sample.batch
        numbers = batch.numbers.numpy()
        if not (numbers == 1).any():
            continue
        pairs = find_neighbors(batch, 1.25).neighbors
        if pairs is None:
            continue
        i, j = pairs.i.numpy(), pairs.j.numpy()
        cell = batch.cell[0].double().numpy()
        positions = batch.positions.double().numpy()
        vectors = positions[j] + pairs.shifts.numpy() @ cell - positions[i]
        forces = sample.labels["forces"].double().numpy()
        once = np.bincount(i, minlength=len(numbers)) == 1  # shared protons are no stretching bonds
        for p in np.flatnonzero((numbers[i] == 1) & np.isin(numbers[j], (6, 7, 8)) & once[i]):
            length = float(np.linalg.norm(vectors[p]))
            if length > 0.8:
                lengths[int(numbers[j[p]])].append(length)
                # towards X is −(r − r0) k for the vector from H to X
                pulls[int(numbers[j[p]])].append(float(forces[i[p]] @ vectors[p]) / length)
    x, y = [], []
    for number, values in lengths.items():
        if len(values) >= 10:
            x.append(np.array(values) - np.mean(values))
            y.append(np.array(pulls[number]) - np.mean(pulls[number]))
    if not x:
        return None
    stretch, pull = np.concatenate(x), np.concatenate(y)
    if len(stretch) < 20 or stretch.std() < 2e-3 or pull.std() == 0:
        return None
    if abs(np.corrcoef(stretch, pull)[0, 1]) < 0.5:
        return None
    return float(stretch @ pull / (stretch @ stretch)), len(stretch)


def check_force_unit(view: View) -> list[Finding]:
    """Stiffness of bonds to hydrogen: the same in all molecules, so it tells the unit and the sign of forces."""
    measured = stretch_constant(view)
    if measured is None:
        return []
    constant, count = measured
    if constant < 0:
        message = (
            f"stretched X–H bonds are pushed apart ({count} bonds, {constant:.3g} eV/Å²): the forces have the wrong "
            "sign, "
            "as gradients have"
        )
        return [Finding("warning", "units", message)]
    if abs(np.log(constant / _STRETCH)) < np.log(3.0):
        return []
    likely = min(FORCE_UNITS, key=lambda unit: abs(np.log(constant * conversion(unit, "forces") / _STRETCH)))
    message = (
        f"X–H bonds have a force constant of {constant:.3g} eV/Å² ({count} bonds; {_STRETCH:g} is usual): forces "
        "look as if "
        f"they were in {likely}, which would make it {constant * conversion(likely, 'forces'):.3g}"
    )
    return [Finding("warning", "units", message)]


def check_force_outliers(view: View) -> list[Finding]:
    """Look for forces far beyond the largest usual ones of their element."""
    having = view.with_label("forces")
    if not having:
        return []
    norms = [view.samples[n].labels["forces"].double().norm(dim=1).numpy() for n in having]
    numbers = np.concatenate([view.samples[n].batch.numbers.numpy() for n in having])
    frame = np.concatenate([np.full(len(norm), n) for n, norm in zip(having, norms, strict=True)])
    force = np.concatenate(norms)
    odd: dict[int, float] = {}
    for number in np.unique(numbers):
        rows = numbers == number
        values = force[rows]
        if len(values) < 50:
            continue
        # Norms of forces have light tails (Maxwell-like, in mixtures up to a few times their rms); five times the 99th
        # percentile is beyond any of them.
        limit = 5.0 * float(np.quantile(values, 0.99))
        for n, value in zip(frame[rows][values > limit], values[values > limit], strict=True):
            odd[int(n)] = max(odd.get(int(n), 0.0), float(value))
    if not odd:
        return []
    frames = sorted(odd, key=lambda n: -odd[n])
    message = (
        f"forces of up to {max(odd.values()):.3g} eV/Å, more than five times the 99th percentile of their element, in "
        f"{view.frames(frames)}: unconverged calculations or broken structures; one such frame can spoil a training"
    )
    return [Finding("warning", "forces", message, view.numbers_of(sorted(frames)))]


def check_net_forces(view: View) -> list[Finding]:
    """Add up the forces of each frame, and the torques of open ones: both are zero."""
    having = [n for n in view.with_label("forces") if view.samples[n].batch.n_atoms > 1]
    if not having:
        return []
    net, torque, level = [], [], []
    for n in having:
        batch = view.samples[n].batch
        forces = view.samples[n].labels["forces"].double().numpy()
        level.append(np.sqrt((forces**2).sum(axis=1).mean()))
        net.append(np.linalg.norm(forces.sum(axis=0)) / np.sqrt(batch.n_atoms))
        if not bool(batch.pbc.any()):
            arms = batch.positions.double().numpy()
            arms = arms - arms.mean(axis=0)
            reach = np.sqrt((arms**2).sum())
            torque.append((n, np.linalg.norm(np.cross(arms, forces - forces.mean(axis=0)).sum(axis=0)) / reach))
    shares, typical = np.array(net), float(np.median(level))
    limit = max(0.02, 0.1 * typical)  # eV/Å: well above what convergence and grids leave
    found = []
    odd = [having[n] for n in np.flatnonzero(shares > limit)]
    if odd:
        message = (
            f"the forces of {view.frames(odd)} do not add up to zero: the sum divided by √N reaches "
            f"{shares.max():.3g} eV/Å "
            f"(forces are typically {typical:.3g} eV/Å), and no model of an isolated system can give such forces"
        )
        found.append(Finding("warning", "net force", message, view.numbers_of(odd)))
    elif np.median(shares) > 0.005:
        message = (
            f"forces add up to {1e3 * np.median(shares):.1f} meV/Å times √N in a typical frame (largest "
            f"{1e3 * shares.max():.1f}): a floor of {1e3 * np.median(shares) / np.sqrt(3):.1f} meV/Å to their error"
        )
        found.append(Finding("note", "net force", message))
    turning = [n for n, value in torque if value > limit and n not in odd]
    if turning:
        worst = max(value for n, value in torque if n in turning)
        message = (
            f"the forces of {view.frames(turning)} turn the whole molecule (up to {worst:.3g} eV/Å in the same "
            "measure as "
            "a net force): positions and forces may be in different frames, or the calculation has a field"
        )
        found.append(Finding("warning", "net force", message, view.numbers_of(turning)))
    return found
