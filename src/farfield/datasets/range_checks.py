"""Checks of range: whether these data need more than a short-range model."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import find_neighbors
from farfield.datasets.findings import Finding, View
from farfield.datasets.quickfit import QuickFit

#: Fragments farther apart than this (Å) are out of reach of a typical short-range model.
APART = 6.0


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
