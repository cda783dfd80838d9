"""Dissociation curves: two rigid molecules pulled apart, by reference and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from ase import Atoms

    from farfield.model import Model

#: Points on which the models' curves are drawn.
FINE_POINTS = 120


@dataclass(frozen=True, eq=False)
class Curve:
    """One dissociation curve.

    Attributes
    ----------
    molecules
        Names of the two molecules.
    kind
        ``CC``, ``CP`` or ``PP``: charged or polar.
    distance
        Between the centres of mass (Å), ascending, shape (points,).
    reference
        Interaction energy (eV) by the reference, shape (points,).
    models
        The same by each model: energy of the dimer minus the model's own energies of the molecules alone.
    fine_distance, fine_models
        The same on a fine grid of distances, to draw.
    horizon
        Distance (Å) beyond which no atom of one molecule sees one of the other within the models' cutoff.
    trained
        Whether this pair of molecules occurs in training, in other geometries.
    """

    molecules: tuple[str, str]
    kind: str
    distance: Float[np.ndarray, " points"]
    reference: Float[np.ndarray, " points"]
    models: dict[str, Float[np.ndarray, " points"]]
    fine_distance: Float[np.ndarray, " fine"]
    fine_models: dict[str, Float[np.ndarray, " fine"]]
    horizon: float
    trained: bool

    @property
    def beyond(self) -> np.ndarray:
        """Which points lie beyond the horizon, shape (points,), bool."""
        return self.distance >= self.horizon


def separate(atoms: Atoms) -> list[Atoms]:
    """Split a system into its molecules, by the array ``molecule``."""
    labels = atoms.arrays["molecule"]
    return [atoms[labels == index] for index in range(int(labels.max()) + 1)]


def smallest_contact(atoms: Atoms) -> float:
    """Shortest distance (Å) between atoms of the two molecules of a dimer."""
    first, second = separate(atoms)
    return float(np.linalg.norm(first.positions[:, None] - second.positions[None], axis=-1).min())


def pulled_apart(group: Sequence[Atoms], distance: float) -> Atoms:
    """Return the dimer of a curve at any distance: the second molecule moves along the line that the curve follows."""
    near, far = group[0], group[-1]
    second = near.arrays["molecule"] == 1
    step = far.info["distance"] - near.info["distance"]

    def offset(atoms: Atoms) -> np.ndarray:
        return atoms.positions[second].mean(0) - atoms.positions[~second].mean(0)

    moved = near.copy()
    moved.positions[second] += (distance - near.info["distance"]) / step * (offset(far) - offset(near))
    return moved


def make_curves(
    frames: Sequence[Atoms], models: Mapping[str, Model], trained_pairs: set[frozenset[str]]
) -> list[Curve]:
    """Evaluate all curves that some frames hold (those with ``curve`` in their info).

    Parameters
    ----------
    frames
        Frames with ``curve``, ``distance``, ``energy_apart`` (energy of the molecules alone, eV) and ``molecules``.
    models
        Models by name.
    trained_pairs
        Pairs of molecules that occur in training.
    """
    groups: dict[str, list[Atoms]] = {}
    for atoms in frames:
        if "curve" in atoms.info:
            groups.setdefault(atoms.info["curve"], []).append(atoms)
    curves = []
    for group in groups.values():
        if len(group) < 2:
            raise ValueError(f"the curve {group[0].info['curve']!r} has a single point, but needs at least two")
        group = sorted(group, key=lambda atoms: atoms.info["distance"])
        first, second = group[0].info["molecules"].split()
        distance = np.array([atoms.info["distance"] for atoms in group])
        fine = np.linspace(distance[0], distance[-1], FINE_POINTS)
        path = [*group, *(pulled_apart(group, d) for d in fine)]
        energies = {}
        for name, model in models.items():
            together = model.compute(bare(path), ["energy"])["energy"]
            alone = model.compute(bare(separate(group[0])), ["energy"])["energy"]
            energies[name] = together - alone.sum()
        cutoff = max(model.potential.receptive_radius for model in models.values())
        hidden = np.array([smallest_contact(atoms) > cutoff for atoms in group])
        curves.append(
            Curve(
                molecules=(first, second),
                kind=group[0].info["kind"],
                distance=distance,
                reference=np.array([atoms.get_potential_energy() - atoms.info["energy_apart"] for atoms in group]),
                models={name: energy[: len(group)] for name, energy in energies.items()},
                fine_distance=fine,
                fine_models={name: energy[len(group) :] for name, energy in energies.items()},
                horizon=float(distance[hidden].min()) if hidden.any() else np.inf,
                trained=frozenset((first, second)) in trained_pairs,
            )
        )
    return sorted(curves, key=lambda curve: curve.kind)


def bare(frames: Sequence[Atoms]) -> list[Atoms]:
    """Return elements and positions only: what a model is shown."""
    from ase import Atoms

    return [Atoms(atoms.numbers, atoms.positions) for atoms in frames]


def pairs_of(frames: Sequence[Atoms]) -> set[frozenset[str]]:
    """Pairs of molecules that occur as dimers."""
    named = [atoms.info["molecules"].split() for atoms in frames]
    return {frozenset(names) for names in named if len(names) == 2}


def molecule_charges(
    frames: Sequence[Atoms], model: Model, known: Mapping[str, float]
) -> dict[str, tuple[float, float, float]]:
    """Sum of the learned charges over each molecule of dimers out of each other's sight.

    Returns
    -------
    dict
        By name of the molecule: its true charge, and mean and standard deviation of the learned one (e).
    """
    apart = [
        atoms for atoms in frames
        if len(atoms.info["molecules"].split()) == 2 and smallest_contact(atoms) > model.potential.receptive_radius
    ]  # fmt: skip
    if not apart:
        return {}
    charges = model.compute(bare(apart), ["charges"])["charges"]
    sums: dict[str, list[float]] = {}
    start = 0
    for atoms in apart:
        part = charges[start : start + len(atoms)]
        start += len(atoms)
        for index, name in enumerate(atoms.info["molecules"].split()):
            sums.setdefault(name, []).append(float(part[atoms.arrays["molecule"] == index].sum()))
    return {
        name: (known[name], float(np.mean(values)), float(np.std(values)))
        for name, values in sums.items()
        if name in known
    }
