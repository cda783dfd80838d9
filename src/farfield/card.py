"""The card of a trained model: what it was trained on, what it is good for, and how its charges are to be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal, Self

#: ε∞ of the bulk, or that the model's own response makes all of it.
EpsilonInfinity = float | Literal["explicit"]

#: Units of all that a model takes and gives.
UNITS = {
    "energy": "eV",
    "length": "Å",
    "forces": "eV/Å",
    "stress": "eV/Å³ (tensile positive)",
    "charge": "e",
    "dipole": "e·Å",
    "quadrupole": "e·Å² (traceless, no factor 3/2, about the geometric centre)",
    "born_charges": "e (first index polarization, second displacement)",
    "polarizability": "Å³",
}


def check_epsilon_infinity(value: object) -> None:
    """Refuse what is no ε∞.

    Raises
    ------
    ValueError
        If it is neither a positive number, nor ``"explicit"``, nor None.
    """
    number = float(value) if isinstance(value, Real) else 0.0
    if value in (None, "explicit") or number > 0:
        return
    raise ValueError(
        f"`epsilon_infinity` is {value!r} but must be a positive number (1 for vacuum), 'explicit' if the model's own "
        "response makes all of it, or None if unknown"
    )


@dataclass(frozen=True)
class ModelCard:
    """What a user has to know of a trained model.

    Attributes
    ----------
    name, description
        What to call it, and what it is for.
    training_data, licence, level_of_theory
        The data it was trained on, their licence, and the theory they were made with.
    elements
        Atomic numbers it knows; structures with others are refused. Taken from the potential where left empty.
    units
        Units of all quantities.
    cutoff, receptive_radius
        Range of its neighbour list, and distance up to which an atom feels others through it (Å). Taken from the
        potential.
    gauge_sign, gauge
        Sign that latent charges are multiplied by (energies are even in them), and how it was fixed.
    epsilon_infinity
        High-frequency dielectric constant of the bulk: physical multipoles of periodic systems are √ε∞ times the latent
        ones. ``"explicit"``: the model's own response makes all of ε∞, as where it was trained on polarizabilities of
        bulk, and its multipoles are physical as they are (ε_e = 1), those of slabs and wires, too. None: unknown;
        multipoles of periodic systems are then reported latent. Open systems need none.
    total_charge
        Total charge (e) that all systems of its training with an energy had: taken for structures that give none where
        the model needs it. None: they differed, or it was not known.
    reference_energies
        Energy of each element (eV) that the model adds, by atomic number. Taken from the potential.
    metrics
        Errors reached, free in form, such as ``{"validation": {"forces": {"rmse": 50.1, "unit": "meV/Å"}}}``.
    command, date, versions
        How, when and with which packages it was trained.
    notes
        Whatever else: limits, how often test data were looked at.
    """

    name: str = "unnamed"
    description: str = ""
    training_data: str = ""
    licence: str = ""
    level_of_theory: str = ""
    elements: tuple[int, ...] = ()
    units: Mapping[str, str] = field(default_factory=lambda: dict(UNITS))
    cutoff: float | None = None
    receptive_radius: float | None = None
    gauge_sign: int = 1
    gauge: str = "not fixed: the overall sign of the charges is arbitrary"
    epsilon_infinity: EpsilonInfinity | None = None
    total_charge: float | None = None
    reference_energies: Mapping[int, float] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    date: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""

    def __post_init__(self) -> None:
        """Check the fields that outputs depend on.

        Raises
        ------
        ValueError
            If the gauge is not a sign, or ε∞ is not positive.
        """
        if self.gauge_sign not in (1, -1):
            raise ValueError(f"`gauge_sign` is {self.gauge_sign!r} but must be 1 or -1")
        check_epsilon_infinity(self.epsilon_infinity)

    def replace(self, **changes: Any) -> ModelCard:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Return the card as plain JSON values."""
        values = dataclasses.asdict(self)
        values["elements"] = list(self.elements)
        values["reference_energies"] = {str(number): energy for number, energy in self.reference_energies.items()}
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read a card back; fields that this version does not know are left out.

        Raises
        ------
        ValueError
            If a value is out of its range.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        given = {name: value for name, value in values.items() if name in known}
        given["elements"] = tuple(int(number) for number in given.get("elements", ()))
        given["reference_energies"] = {int(k): float(v) for k, v in given.get("reference_energies", {}).items()}
        return cls(**given)
