"""What is in the set: molecules, pairs, distances, clusters."""

from __future__ import annotations

SEED = 20261123
#: Total charge of each molecule.
MOLECULES = {
    "ammonium": 1,
    "methylammonium": 1,
    "formate": -1,
    "acetate": -1,
    "water": 0,
    "methanol": 0,
    "formamide": 0,
    "acetonitrile": 0,
}
#: Pairs that never occur in training, at any distance.
UNSEEN = [
    ("methylammonium", "acetate"),
    ("formate", "formamide"),
    ("methylammonium", "acetonitrile"),
    ("formamide", "acetonitrile"),
]
#: Held-back dissociation curves: the unseen pairs, and two pairs of which other geometries are in training.
CURVES = [UNSEEN[0], ("ammonium", "formate"), UNSEEN[1], UNSEEN[2], UNSEEN[3], ("water", "formamide")]
CURVE_DISTANCES = (3.0, 3.4, 3.8, 4.2, 4.6, 5.0, 5.5, 6.0, 6.5, 7.0, 8.0, 9.0, 10.0, 11.5, 13.0, 15.0)
#: Points of the curves that get Born charges, which cost most; all other frames held back get them.
BORN_DISTANCES = (5.0, 7.0, 10.0)
#: Frames that are labelled of those planned for training: the first of a random order.
TRAINING_FRAMES = 370
#: Largest distance of a training dimer (Å): the curves go beyond it.
TRAINED_RANGE = 10.0
#: Ions surrounded by waters, and how many.
CLUSTERS = [
    (None, 2),
    (None, 3),
    (None, 4),
    (None, 5),
    ("ammonium", 3),
    ("methylammonium", 2),
    ("formate", 3),
    ("acetate", 2),
]


def pairs() -> list[tuple[str, str]]:
    """All pairs of molecules, in order; a polar molecule also pairs with its like."""
    names = list(MOLECULES)
    return [(a, b) for i, a in enumerate(names) for b in names[i:]]


def charge_class(pair: tuple[str, str]) -> str:
    """Return CC, CP or PP."""
    return "".join(sorted("C" if MOLECULES[name] else "P" for name in pair))
