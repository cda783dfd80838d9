"""Checks of structures alone: lengths, isolated atoms, duplicates, and whether frames follow one another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from farfield.atoms.batch import AtomicBatch
from farfield.atoms.neighbors import find_neighbors
from farfield.datasets.findings import Finding, View

#: An atom with no neighbour within this distance (Å) is isolated: most short-range models do not see that far.
ISOLATED = 5.0

#: Frames whose distances agree to this relative difference are the same structure.
SAME = 1e-6


def bond_ratios(batch: AtomicBatch, cutoff: float = 6.0) -> Float[np.ndarray, " atoms"]:
    """Distance to the nearest neighbour over the sum of covalent radii, by atom; infinite without neighbours."""
    from ase.data import covalent_radii

    pairs = find_neighbors(batch, cutoff).neighbors
    ratios = np.full(batch.n_atoms, np.inf)
    if pairs is None or len(pairs.i) == 0:
        return ratios
    i, j = pairs.i.numpy(), pairs.j.numpy()
    positions, cell = batch.positions.double().numpy(), batch.cell[0].double().numpy()
    distances = np.linalg.norm(positions[j] + pairs.shifts.numpy() @ cell - positions[i], axis=1)
    numbers = batch.numbers.numpy()
    np.minimum.at(ratios, i, distances / (covalent_radii[numbers[i]] + covalent_radii[numbers[j]]))
    return ratios


def check_lengths(view: View) -> list[Finding]:
    """Bond lengths against covalent radii: another unit of length shifts them all; overlapping atoms stand out."""
    chosen = _evenly(range(len(view.samples)), 200)
    # A far longer list than bonds need, so that a file in bohr still shows its neighbours.
    ratios = [bond_ratios(view.samples[n].batch) for n in chosen]
    finite = np.concatenate([ratio[np.isfinite(ratio)] for ratio in ratios])
    if len(finite) == 0:
        return []
    found = []
    typical = float(np.quantile(finite, 0.25))
    for factor, unit in ((1.8897, "bohr"), (0.1, "nm"), (10.0, "pm or a scaled unit")):
        if len(finite) >= 20 and abs(np.log(typical / factor)) < 0.16:
            message = (
                f"nearest neighbours are {typical:.2f} times as far apart as covalent radii add up to, as if positions "
                f"were in {unit}: state the unit of positions"
            )
            return [Finding("warning", "units", message)]
    close = [n for n, ratio in zip(chosen, ratios, strict=True) if ratio.min() < 0.5]
    if close:
        message = (
            f"atoms come closer than half the sum of their covalent radii in {view.frames(close)} (closest: "
            f"{finite.min():.2f} of it)"
        )
        found.append(Finding("warning", "distances", message, view.numbers_of(close)))
    return found


def check_isolated(view: View) -> list[Finding]:
    """Atoms without neighbours within `ISOLATED`, and frames of one atom."""
    single = [n for n, sample in enumerate(view.samples) if sample.batch.n_atoms == 1]
    lonely = []
    count = 0
    for n, sample in enumerate(view.samples):
        if sample.batch.n_atoms > 1:
            pairs = find_neighbors(sample.batch, ISOLATED).neighbors
            seen = np.zeros(sample.batch.n_atoms, dtype=bool)
            if pairs is not None:
                seen[pairs.i.numpy()] = True
            if not seen.all():
                lonely.append(n)
                count += int((~seen).sum())
    found = []
    if lonely:
        message = (
            f"{count} atoms have no neighbour within {ISOLATED:g} Å, in {view.frames(lonely)}: no short-range model "
            "can "
            "give a force on them"
        )
        found.append(Finding("note", "isolated", message, view.numbers_of(lonely)))
    if single:
        message = f"{len(single)} frames are single atoms ({view.frames(single)}): energies of isolated atoms?"
        found.append(Finding("note", "isolated", message, view.numbers_of(single)))
    return found


def fingerprint(batch: AtomicBatch) -> Float[np.ndarray, " features"]:
    """Numbers that do not change when a structure is moved, turned, mirrored or its atoms are renumbered.

    Sums over all pairs (nearest images in periodic cells) of inverse powers of the distance, weighted by products of
    two sets of fixed pseudo-random element weights.
    """
    positions, cell = batch.positions.double().numpy(), batch.cell[0].double().numpy()
    pbc = batch.pbc[0].numpy()
    weights = np.random.default_rng(7).uniform(0.5, 1.5, size=(119, 2))[batch.numbers.numpy()]
    volume = 0.0
    if pbc.all():
        volume = abs(float(np.linalg.det(cell)))
        inverse = np.linalg.inv(cell)
    features = np.zeros((2, 4))
    # Rows of pairs, as many at once as fit into some 10 MB.
    step = max(200_000 // max(len(positions), 1), 1)
    for start in range(0, len(positions), step):
        vectors = positions[None] - positions[start : start + step, None]
        if pbc.all():
            fractions = vectors @ inverse
            vectors = (fractions - np.round(fractions)) @ cell
        squares = (vectors**2).sum(axis=-1)
        squares[np.arange(len(squares)), start + np.arange(len(squares))] = np.inf  # an atom with itself
        inverses = 1.0 / np.sqrt(np.maximum(squares, 1e-6))
        for k, power in enumerate((inverses, inverses**2, inverses**3, inverses**6)):
            features[:, k] += ((power @ weights) * weights[start : start + step]).sum(axis=0)
    return np.append(features.ravel(), volume)


def duplicates(batches: Sequence[AtomicBatch]) -> list[tuple[int, ...]]:
    """Find groups of equal structures, by index."""
    from scipy.spatial import cKDTree

    by_formula: dict[bytes, list[int]] = defaultdict(list)
    for n, batch in enumerate(batches):
        if batch.n_atoms > 1:
            by_formula[np.sort(batch.numbers.numpy()).tobytes()].append(n)
    groups = []
    for members in by_formula.values():
        if len(members) < 2:
            continue
        table = np.stack([fingerprint(batches[n]) for n in members])
        scale = np.abs(table).max(axis=0)
        tree = cKDTree(table / np.where(scale > 0, scale, 1.0))
        parent = list(range(len(members)))
        for a, b in sorted(tree.query_pairs(SAME, p=np.inf)):
            root = min(_root(parent, a), _root(parent, b))
            parent[_root(parent, a)] = parent[_root(parent, b)] = root
        sets: dict[int, list[int]] = defaultdict(list)
        for n, member in enumerate(members):
            sets[_root(parent, n)].append(member)
        groups += [tuple(group) for group in sets.values() if len(group) > 1]
    return sorted(groups)


def check_duplicates(view: View) -> list[Finding]:
    """Look for structures that stand there twice, also moved, turned or renumbered; worse, with other energies."""
    groups = duplicates([sample.batch for sample in view.samples])
    if not groups:
        return []
    extra = sum(len(group) - 1 for group in groups)
    shown = "; ".join(_equal(view, group) for group in groups[:6])
    more = f"; and {len(groups) - 6} more" if len(groups) > 6 else ""
    frames = view.numbers_of([n for group in groups for n in group])
    message = (
        f"{extra} structures stand in the file more than once (frames {shown}{more}): remove them, or see that they "
        "do not "
        "fall into training and test sets alike"
    )
    found = [Finding("warning", "duplicates", message, frames)]
    contradicting = []
    for group in groups:
        energies = [
            float(view.samples[n].labels["energy"][0]) / view.samples[n].batch.n_atoms
            for n in group
            if "energy" in view.samples[n].labels
        ]
        if energies and max(energies) - min(energies) > 1e-3:
            contradicting.append(group[0])
    if contradicting:
        message = f"copies of one structure differ in energy by more than 1 meV/atom ({view.frames(contradicting)})"
        found.append(Finding("warning", "duplicates", message, view.numbers_of(contradicting)))
    return found


def _equal(view: View, group: tuple[int, ...], most: int = 5) -> str:
    shown = " = ".join(str(view.index[n]) for n in group[:most])
    return shown + (f" = {len(group) - most} more" if len(group) > most else "")


def check_order(view: View) -> list[Finding]:
    """Frames in sequence that are closer than others: a random split of a trajectory tests nothing."""
    formulas = [sample.batch.numbers.numpy().tobytes() for sample in view.samples]
    following = [n for n in range(len(formulas) - 1) if formulas[n] == formulas[n + 1]]
    if len(following) < 10:
        return []
    generator = np.random.default_rng(0)
    near, far = [], []
    for n in _evenly(following, 200):
        same = [m for m in generator.integers(0, len(formulas), 8) if formulas[m] == formulas[n] and abs(m - n) > 2]
        if same:
            near.append(_displacement(view.samples[n].batch, view.samples[n + 1].batch))
            far.append(_displacement(view.samples[n].batch, view.samples[same[0]].batch))
    if len(near) < 10:
        return []
    close, random = float(np.median(near)), float(np.median(far))
    if close > 0.6 * random:
        return []
    message = (
        f"neighbouring frames are alike, as in a trajectory or a scan (atoms differ by {close:.2g} Å from one to the "
        "next, "
        f"by {random:.2g} Å between any two): take contiguous blocks for validation and test, not a random split"
    )
    return [Finding("note", "order", message)]


def _displacement(one: AtomicBatch, other: AtomicBatch) -> float:
    """RMS displacement of the atoms, nearest images, without the mean."""
    vectors = (other.positions - one.positions).double().numpy()
    if bool(one.pbc.all()):
        cell = one.cell[0].double().numpy()
        fractions = vectors @ np.linalg.inv(cell)
        vectors = (fractions - np.round(fractions)) @ cell
    vectors = vectors - vectors.mean(axis=0)
    return float(np.sqrt((vectors**2).sum(axis=1).mean()))


def _evenly(positions: Sequence[int], most: int) -> list[int]:
    if len(positions) <= most:
        return list(positions)
    return [positions[round(x)] for x in np.linspace(0, len(positions) - 1, most)]


def _root(parent: list[int], n: int) -> int:
    while parent[n] != n:
        n = parent[n]
    return n
