"""Checks of labels: units, signs, outliers, sum rules, and whether the data reach beyond short range."""

from __future__ import annotations

from collections import Counter

import numpy as np
from jaxtyping import Float

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import find_neighbors
from farfield.datasets.dataset import LABEL_SHAPES
from farfield.datasets.inspect import Finding, View
from farfield.datasets.quantities import conversion
from farfield.datasets.quickfit import QuickFit

#: Stretching force constants of C–H, N–H and O–H bonds are 30 to 50 eV/Å² (harmonic 2900 to 3800 1/cm).
_STRETCH = 40.0

#: Fragments farther apart than this (Å) are out of reach of a typical short-range model.
APART = 6.0

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
_FORCE_UNITS = ("kcal/mol/Å", "kJ/mol/Å", "Ha/bohr", "Ry/bohr", "Ha/Å", "kcal/mol/bohr", "meV/Å")


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
    likely = min(_FORCE_UNITS, key=lambda unit: abs(np.log(constant * conversion(unit, "forces") / _STRETCH)))
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


def check_total_charges(view: View) -> list[Finding]:
    """Total charges that differ between frames, and atomic charges that do not add up to them."""
    found = []
    charges = [float(entry["total_charge"]) for entry in view.info if "total_charge" in entry]
    kinds = Counter(round(charge, 6) + 0.0 for charge in charges)
    if len(kinds) > 1:
        listed = ", ".join(f"{charge:+g} e in {count}" for charge, count in sorted(kinds.items()))
        message = (
            f"frames differ in total charge ({listed}): a model of all of them needs it as an input (`total_charge`)"
        )
        found.append(Finding("note", "charge", message))
    fractional = sum(count for charge, count in kinds.items() if abs(charge - round(charge)) > 1e-3)
    if fractional:
        found.append(Finding("warning", "charge", f"{fractional} frames have a fractional total charge"))
    charged = [
        n
        for n, entry in enumerate(view.info)
        if abs(float(entry.get("total_charge", 0.0))) > 1e-3 and bool(view.samples[n].batch.pbc.any())
    ]
    if charged:
        message = (
            f"{len(charged)} periodic frames are charged: their energies hold a neutralizing background, and depend "
            "on the "
            "size of the cell"
        )
        found.append(Finding("note", "charge", message))
    odd = []
    for n in view.with_label("charges"):
        known = float(view.info[n].get("total_charge", 0.0))
        if (
            abs(float(view.samples[n].labels["charges"].double().sum()) - known) > 0.05
            and "total_charge" in view.info[n]
        ):
            odd.append(n)
    if odd:
        message = f"atomic charges do not add up to the total charge within .05 e in {view.frames(odd)}"
        found.append(Finding("warning", "charge", message, view.numbers_of(odd)))
    return found


def check_dipoles(view: View) -> list[Finding]:
    """Dipoles of open systems against those of the atomic charges."""
    having = [
        n
        for n in view.with_label("dipole", "charges")
        if not bool(view.samples[n].batch.pbc.any()) and abs(float(view.info[n].get("total_charge", 0.0))) < 1e-3
    ]
    if len(having) < 3:
        return []
    given = np.stack([view.samples[n].labels["dipole"][0].double().numpy() for n in having])
    made = []
    for n in having:
        charges = view.samples[n].labels["charges"].double().numpy()
        positions = view.samples[n].batch.positions.double().numpy()
        made.append((charges - charges.mean()) @ positions)
    ours, theirs = np.stack(made).ravel(), given.ravel()
    correlation = float(ours @ theirs / max(np.linalg.norm(ours) * np.linalg.norm(theirs), 1e-300))
    if correlation**2 < 0.7:
        return []
    slope = float(np.sign(correlation) * np.linalg.norm(theirs) / np.linalg.norm(ours))
    if slope < 0:
        message = f"dipoles point against those of the atomic charges (correlation {correlation:.2f}): check their sign"
        return [Finding("warning", "units", message)]
    for unit in ("Debye", "e·bohr"):
        ratio = 1.0 / conversion(unit, "dipole")
        if abs(np.log(slope / ratio)) < 0.2:
            message = (
                f"dipoles are {slope:.3g} times those of the atomic charges, as if they were in {unit}: "
                "state the unit of dipoles"
            )
            return [Finding("warning", "units", message)]
    return []


def _rotation_errors(view: View, positions: list[int]) -> tuple[float, float]:
    """RMS violation of the rotational sum rule with the indices of Born charges as given, and exchanged.

    Turning a molecule by ω turns its dipole: Σ_i Z*_i (ω × r_i) = ω × µ, for charged ones about any one origin.
    """
    sums = np.zeros(2)
    for n in positions:
        labels = view.samples[n].labels
        born = labels["born_charges"].double().numpy()
        dipole = labels["dipole"][0].double().numpy()
        arms = view.samples[n].batch.positions.double().numpy()
        for axis in np.eye(3):
            moved, expected = np.cross(axis, arms), np.cross(axis, dipole)
            sums[0] += ((np.einsum("iab,ib->a", born, moved) - expected) ** 2).sum()
            sums[1] += ((np.einsum("iba,ib->a", born, moved) - expected) ** 2).sum()
    return float(np.sqrt(sums[0])), float(np.sqrt(sums[1]))


def check_born_charges(view: View) -> list[Finding]:
    """Sum rules of Born charges: over atoms the total charge; under rotation the dipole, which tells their order."""
    found = []
    odd, worst = [], 0.0
    for n in view.with_label("born_charges"):
        born = view.samples[n].labels["born_charges"].double().numpy()
        total = float(view.info[n].get("total_charge", 0.0))
        excess = float(np.abs(born.sum(axis=0) - total * np.eye(3)).max()) / np.sqrt(len(born))
        worst = max(worst, excess)
        if excess > 0.05:
            odd.append(n)
    if odd:
        message = (
            f"Born charges do not add up to the total charge in {view.frames(odd)} (the sum divided by √N is off by "
            "up to "
            f"{worst:.2g} e)"
        )
        found.append(Finding("warning", "born charges", message, view.numbers_of(odd)))
    open_ones = [n for n in view.with_label("born_charges", "dipole") if not bool(view.samples[n].batch.pbc.any())]
    if open_ones:
        given, exchanged = _rotation_errors(view, open_ones)
        if exchanged < 0.5 * given:
            message = (
                f"Born charges obey the rotational sum rule {given / max(exchanged, 1e-12):.1f} times better with "
                "their "
                "indices exchanged: the file seems to hold the other index order; set `conventions.born_charges`"
            )
            found.append(Finding("warning", "born charges", message))
    return found


def fragments_of(batch: AtomicBatch, stretch: float = 1.3) -> np.ndarray:
    """Index of the bonded fragment of each atom; atoms within ``stretch`` times their covalent radii are bonded."""
    from ase.data import covalent_radii
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    numbers = batch.numbers.numpy()
    pairs = find_neighbors(batch, max(2.0 * stretch * float(covalent_radii[numbers].max()), 1.0)).neighbors
    if pairs is None:
        return np.arange(len(numbers))
    i, j, distances = _pairs(batch, pairs)
    bonded = distances < stretch * (covalent_radii[numbers[i]] + covalent_radii[numbers[j]])
    size = len(numbers)
    graph = coo_matrix((np.ones(int(bonded.sum())), (i[bonded], j[bonded])), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def _pairs(batch: AtomicBatch, pairs: object) -> tuple[np.ndarray, np.ndarray, Float[np.ndarray, " pairs"]]:
    i, j = pairs.i.numpy(), pairs.j.numpy()  # type: ignore[attr-defined]
    positions, cell = batch.positions.double().numpy(), batch.cell[0].double().numpy()
    shifts = pairs.shifts.numpy()  # type: ignore[attr-defined]
    return i, j, np.linalg.norm(positions[j] + shifts @ cell - positions[i], axis=1)


def check_fragments(view: View) -> list[Finding]:
    """Net forces on fragments that nothing else comes near: proof of long range, whatever the model."""
    felt, noise, frames = [], [], []
    for n in view.with_label("forces")[:500]:
        batch = view.samples[n].batch
        fragment = fragments_of(batch)
        count = int(fragment.max()) + 1
        if not 2 <= count <= 20:
            continue
        pairs = find_neighbors(batch, APART).neighbors
        if pairs is None:
            continue
        i, j, _ = _pairs(batch, pairs)
        touched = np.zeros(count, dtype=bool)
        touched[fragment[i][fragment[i] != fragment[j]]] = True
        forces = view.samples[n].labels["forces"].double().numpy()
        apart = np.flatnonzero(~touched)
        if len(apart):
            frames.append(n)
            noise.append(float(np.linalg.norm(forces.sum(axis=0))))
            felt += [float(np.linalg.norm(forces[fragment == k].sum(axis=0))) for k in apart]
    if not felt:
        return []
    rms, floor = float(np.sqrt(np.mean(np.square(felt)))), float(np.sqrt(np.mean(np.square(noise))))
    if rms < max(0.01, 3.0 * floor):
        message = (
            f"{len(felt)} fragments in {len(frames)} frames are farther than {APART:g} Å from all others, and feel "
            "next to "
            f"nothing there (net force {1e3 * rms:.1f} meV/Å rms): no sign of long range at these distances"
        )
        return [Finding("note", "range", message, view.numbers_of(frames))]
    message = (
        f"{len(felt)} fragments in {len(frames)} frames are farther than {APART:g} Å from all others, and yet feel a "
        "net "
        f"force of {1e3 * rms:.0f} meV/Å rms, up to {1e3 * max(felt):.0f}: no short-range model of that cutoff can "
        "give "
        "it; these data need long range"
    )
    return [Finding("note", "range", message, view.numbers_of(frames))]


def check_against_fit(view: View, fit: QuickFit) -> list[Finding]:
    """Energies and stress against those that the forces imply, and single forces against the fit."""
    if fit.rmse[-1] > 0.4 * fit.spread:
        return []  # a fit that does not know the forces knows nothing else
    energy, stress = _check_energy_unit(view, fit), _check_stress(view, fit)
    if energy and "wrong sign" in energy[0].message:
        stress = []  # if energies and stress both contradict the forces, it is the forces that are wrong
    return energy + stress + _check_fit_outliers(view, fit)


def _slope(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """Slope of y against x (ratio of their spreads, with sign), and the correlation."""
    norms = float(np.linalg.norm(x)), float(np.linalg.norm(y))
    if min(norms) == 0:
        return 0.0, 0.0
    correlation = float(x @ y) / (norms[0] * norms[1])
    return float(np.sign(correlation)) * norms[1] / norms[0], correlation


def _check_energy_unit(view: View, fit: QuickFit) -> list[Finding]:
    """Energies differ by the work of the forces: the fit, made on forces alone, knows their scale and sign."""
    rows = [k for k, n in enumerate(fit.used) if "energy" in view.samples[n].labels]
    if not rows:
        return []
    formulas = [view.formula(fit.used[k]) for k in rows]
    energy = np.array([float(view.samples[fit.used[k]].labels["energy"][0]) for k in rows])
    volume = np.array([_volume(view.samples[fit.used[k]].batch) for k in rows])
    # Constants of the elements differ between the two, and forces leave a pressure open: compare within each
    # composition, and what does not go with the volume.
    x: list[np.ndarray] = []
    y: list[np.ndarray] = []
    for formula in set(formulas):
        members = np.array([m for m, other in enumerate(formulas) if other == formula])
        basis = [np.ones(len(members))]
        if np.ptp(volume[members]) > 1e-4 * volume[members].mean():
            basis += [volume[members] - volume[members].mean(), (volume[members] - volume[members].mean()) ** 2]
        if len(members) > len(basis):
            q, _ = np.linalg.qr(np.stack(basis, axis=1))
            for target, values in ((x, fit.energies[[rows[m] for m in members]]), (y, energy[members])):
                target.append(values - q @ (q.T @ values))
    if sum(len(part) for part in x) < 10:
        return []
    slope, correlation = _slope(np.concatenate(x), np.concatenate(y))
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
    rows = [
        k for k, n in enumerate(fit.used) if "stress" in view.samples[n].labels and np.isfinite(fit.stresses[k]).all()
    ]
    if len(rows) < 4:
        return []
    formulas = [view.formula(fit.used[k]) for k in rows]
    x: list[np.ndarray] = []
    y: list[np.ndarray] = []
    upper = np.triu_indices(3, 1)
    for formula in set(formulas):
        members = [m for m, other in enumerate(formulas) if other == formula]
        if len(members) < 2:
            continue
        ours = np.stack([fit.stresses[rows[m]] for m in members])
        theirs = np.stack([view.samples[fit.used[rows[m]]].labels["stress"][0].double().numpy() for m in members])
        for target, values in ((x, ours), (y, theirs)):
            diagonal = np.diagonal(values, axis1=1, axis2=2)
            target.append(values[:, upper[0], upper[1]].ravel())
            target.append((diagonal - diagonal.mean(axis=0)).ravel())
    if not x:
        return []
    slope, correlation = _slope(np.concatenate(x), np.concatenate(y))
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
    candidates |= {f"the forces are in {unit}": conversion(unit, "forces") for unit in _FORCE_UNITS}
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


def check_range(fit: QuickFit) -> list[Finding]:
    """How far the error of the quick fit falls beyond a usual cutoff of 5 Å."""
    error = dict(zip(fit.cutoffs, fit.rmse, strict=True))
    middle, far = error[5.0], min(error[6.0], error[8.0])
    gain = 1.0 - far / middle if middle > 0 else 0.0
    listed = ", ".join(f"{1e3 * value:.3g} at {cutoff:g} Å" for cutoff, value in error.items())
    text = f"force RMSE of the quick fit, held out: {listed} (meV/Å; forces are {1e3 * fit.spread:.3g} rms)"
    if min(fit.rmse) > 0.5 * fit.spread:
        text += ". The fit is too poor to tell: too few frames for so many elements, or forces of another origin"
    elif gain > 0.25:
        text += f". It still falls by {100 * gain:.0f} % beyond 5 Å: long range should pay"
    elif gain > 0.08:
        text += f". It falls by {100 * gain:.0f} % beyond 5 Å: long range may pay"
    else:
        text += (
            ". It does not fall beyond 5 Å: what such a simple fit misses is of short range, and says nothing about "
            "subtler "
            "long-range effects"
        )
    return [Finding("note", "range", text)]
