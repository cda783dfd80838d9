"""One quantity side by side: what the model says and what the label says, in the units of the report."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from farfield.evaluation.metrics import Metrics, compute_metrics


@dataclass(frozen=True)
class Quantity:
    """What the evaluation knows of a quantity.

    Attributes
    ----------
    label
        Name of the label, which is also the model's name for it.
    title
        Name for people.
    unit
        Unit of the report.
    scale
        From farfield's own unit to that of the report.
    per_atom
        Whether there is one value (or tensor) for each atom.
    """

    label: str
    title: str
    unit: str
    scale: float = 1.0
    per_atom: bool = False


#: Quantities that can be evaluated, by their key in the JSON file, in the order of the table.
QUANTITIES: dict[str, Quantity] = {
    "energy_per_atom": Quantity("energy", "Energy per atom", "meV", 1e3),
    "forces": Quantity("forces", "Forces", "meV/Å", 1e3, per_atom=True),
    "stress": Quantity("stress", "Stress", "meV/Å³", 1e3),
    "interaction_energy": Quantity("interaction_energy", "Interaction energy", "meV", 1e3),
    "interaction_forces": Quantity("interaction_forces", "Interaction forces", "meV/Å", 1e3, per_atom=True),
    "dipole": Quantity("dipole", "Dipole", "e·Å"),
    "quadrupole": Quantity("quadrupole", "Quadrupole", "e·Å²"),
    "charges": Quantity("charges", "Charges", "e", per_atom=True),
    "born_charges": Quantity("born_charges", "Born charges", "e", per_atom=True),
    "polarizability": Quantity("polarizability", "Polarizability", "Å³"),
}


@dataclass(frozen=True, eq=False)
class Comparison:
    """Predictions and labels of one quantity.

    Attributes
    ----------
    key
        Key in `QUANTITIES`.
    predicted, reference
        Shape (rows, components), in the unit of the quantity; a row is an atom or a system.
    system
        Index of the structure of each row in the file, shape (rows,).
    numbers
        Atomic number of each row where rows are atoms, else empty.
    """

    key: str
    predicted: Float[np.ndarray, "rows components"]
    reference: Float[np.ndarray, "rows components"]
    system: Int[np.ndarray, " rows"]
    numbers: Int[np.ndarray, " atoms"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def quantity(self) -> Quantity:
        """What is known of the quantity."""
        return QUANTITIES[self.key]

    @cached_property
    def metrics(self) -> Metrics:
        """Errors, pooled over all components."""
        return compute_metrics(
            self.predicted, self.reference, self.quantity.unit, centred=self.key == "energy_per_atom"
        )

    @cached_property
    def by_element(self) -> dict[int, Metrics]:
        """Errors of the atoms of each element, by atomic number; empty where rows are systems."""
        return {
            int(number): compute_metrics(self.predicted[rows], self.reference[rows], self.quantity.unit)
            for number in np.unique(self.numbers)
            if (rows := self.numbers == number).any()
        }

    def rmse_of_systems(self) -> dict[int, float]:
        """RMSE of each structure, by its index in the file."""
        squares = ((self.predicted - self.reference) ** 2).mean(axis=1)
        systems, inverse, counts = np.unique(self.system, return_inverse=True, return_counts=True)
        means = np.bincount(inverse, weights=squares) / counts
        return {int(index): float(np.sqrt(mean)) for index, mean in zip(systems, means, strict=True)}
