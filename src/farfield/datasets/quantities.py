"""Units and index orders of labels: what a file may hold, and how it becomes farfield's own."""

from __future__ import annotations

import difflib
import re
from typing import Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from farfield.units import BOHR, DEBYE, HARTREE

#: J per e (elementary charge, CODATA 2018, exact) and the Avogadro constant: kcal/mol = 4184 J / N_A.
_JOULE = 1.0 / 1.602176634e-19
_PER_MOL = 1.0 / 6.02214076e23

_BASE = {
    "eV": (1.0, "energy"),
    "meV": (1e-3, "energy"),
    "Ha": (HARTREE, "energy"),
    "hartree": (HARTREE, "energy"),
    "Ry": (HARTREE / 2, "energy"),
    "kcal/mol": (4184.0 * _JOULE * _PER_MOL, "energy"),
    "kJ/mol": (1000.0 * _JOULE * _PER_MOL, "energy"),
    "Å": (1.0, "length"),
    "Angstrom": (1.0, "length"),
    "angstrom": (1.0, "length"),
    "A": (1.0, "length"),
    "bohr": (BOHR, "length"),
    "nm": (10.0, "length"),
    "e": (1.0, "charge"),
    "Debye": (DEBYE, "dipole"),
    "debye": (DEBYE, "dipole"),
    "D": (DEBYE, "dipole"),
    # 1 GPa = 10⁹ J/m³ = 10⁹/(1.602…·10⁻¹⁹)·10⁻³⁰ eV/Å³
    "GPa": (1e9 * _JOULE * 1e-30, "stress"),
    "kbar": (1e8 * _JOULE * 1e-30, "stress"),
    "bar": (1e5 * _JOULE * 1e-30, "stress"),
}

#: Powers of (energy, length, charge) of each quantity.
_DIMENSIONS = {
    "energy": (1, 0, 0),
    "length": (0, 1, 0),
    "charge": (0, 0, 1),
    "dipole": (0, 1, 1),
    "stress": (1, -3, 0),
    "forces": (1, -1, 0),
    "positions": (0, 1, 0),
    "charges": (0, 0, 1),
    "quadrupole": (0, 2, 1),
    "born_charges": (0, 0, 1),
    "polarizability": (0, 3, 0),
    "interaction_energy": (1, 0, 0),
    "interaction_forces": (1, -1, 0),
}

#: farfield's own unit of each quantity that a file may hold.
OWN_UNITS = {
    "positions": "Å",
    "energy": "eV",
    "forces": "eV/Å",
    "stress": "eV/Å³",
    "dipole": "e·Å",
    "quadrupole": "e·Å²",
    "charges": "e",
    "born_charges": "e",
    "polarizability": "Å³",
    "interaction_energy": "eV",
    "interaction_forces": "eV/Å",
}

#: Labels that compare a system with its fragments.
INTERACTIONS = ("interaction_energy", "interaction_forces")


def conversion(unit: str, quantity: str) -> float:
    """Factor that turns a value in ``unit`` into farfield's unit of ``quantity``.

    Products are written with ``·`` or ``*``, quotients with ``/``, powers with ``²``, ``³``, ``^2`` or ``**2``:
    ``kcal/mol/Å``, ``Ha/bohr``, ``Debye·Å``, ``eV/Å^3``.

    Raises
    ------
    ValueError
        If the unit is not known, or is one of another quantity.
    """
    text = unit.strip().replace("**", "^").replace("·", "*").replace("²", "^2").replace("³", "^3")
    # "kcal/mol" is one name here: its slash is no quotient.
    text = re.sub(r"\b(kcal|kJ)/mol\b", r"\1_mol", text)
    factor, powers = 1.0, np.zeros(3, dtype=int)
    for sign, token in re.findall(r"([*/]?)\s*([^*/\s]+)", text):
        name, _, power = token.partition("^")
        name = name.replace("_mol", "/mol")
        exponent = int(power) if re.fullmatch(r"-?\d+", power) else 1
        if name not in _BASE or (power and not re.fullmatch(r"-?\d+", power)):
            near = difflib.get_close_matches(name, _BASE, n=2, cutoff=0.5)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"the unit {unit!r} of {quantity} has an unknown part {token!r}.{hint} Known: {', '.join(_BASE)}"
            )
        value, dimension = _BASE[name]
        exponent = -exponent if sign == "/" else exponent
        factor *= value**exponent
        powers += exponent * np.array(_DIMENSIONS[dimension])
    if not np.array_equal(powers, _DIMENSIONS[quantity]):
        raise ValueError(
            f"the unit {unit!r} is not one of {quantity}: give a unit such as {OWN_UNITS[quantity]!r} (the default)"
        )
    return factor


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Columns(_Strict):
    """Names under which a file may hold each label; the first that is there is taken.

    Attributes
    ----------
    energy, forces, stress, dipole, quadrupole, charges, born_charges, polarizability, interaction_energy, \
interaction_forces
        A name or a list of names, of calculator results, info or arrays; null: never read this label.
    epsilon_infinity
        The same for the high-frequency dielectric tensor ε of bulk, dimensionless, nine components or one for ε·1. A
        frame that is periodic along all axes and has no polarizability gets that of its cell, V (ε − 1)/4π.
    """

    energy: tuple[str, ...] = ("energy",)
    forces: tuple[str, ...] = ("forces", "force")
    stress: tuple[str, ...] = ("stress",)
    dipole: tuple[str, ...] = ("ref_dipole", "dipole")
    quadrupole: tuple[str, ...] = ("ref_quadrupole", "quadrupole")
    charges: tuple[str, ...] = ("mbi_charges",)
    born_charges: tuple[str, ...] = ("bec",)
    polarizability: tuple[str, ...] = ("polarizability",)
    epsilon_infinity: tuple[str, ...] = ("epsilon_inf",)
    interaction_energy: tuple[str, ...] = ("interaction_energy",)
    interaction_forces: tuple[str, ...] = ("interaction_forces",)

    @field_validator("*", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if value is None:
            return ()
        return (value,) if isinstance(value, str) else value


class Units(_Strict):
    """Units of positions and labels in a file; farfield's own by default.

    Attributes
    ----------
    positions, energy, forces, stress, dipole, quadrupole, charges, born_charges, polarizability, \
interaction_energy, interaction_forces
        A unit such as ``kcal/mol/Å``, ``Ha/bohr`` or ``Debye`` (see `conversion`).
    """

    positions: str = OWN_UNITS["positions"]
    energy: str = OWN_UNITS["energy"]
    forces: str = OWN_UNITS["forces"]
    stress: str = OWN_UNITS["stress"]
    dipole: str = OWN_UNITS["dipole"]
    quadrupole: str = OWN_UNITS["quadrupole"]
    charges: str = OWN_UNITS["charges"]
    born_charges: str = OWN_UNITS["born_charges"]
    polarizability: str = OWN_UNITS["polarizability"]
    interaction_energy: str = OWN_UNITS["interaction_energy"]
    interaction_forces: str = OWN_UNITS["interaction_forces"]

    @model_validator(mode="after")
    def _known(self) -> Self:
        for quantity in OWN_UNITS:
            self.factor(quantity)
        return self

    def factor(self, quantity: str) -> float:
        """Factor that turns a value of the file into farfield's unit."""
        return conversion(getattr(self, quantity), quantity)


class Conventions(_Strict):
    """Index orders and signs of the labels of a file.

    Attributes
    ----------
    born_charges
        Which index of the nine stands first: that of the displacement (or force), as in the shared files, or that of
        the polarization (or field), as farfield has it.
    stress
        The sign: ``tensile`` (positive under tension, ASE's) or ``compressive`` (positive under pressure).
    """

    born_charges: Literal["displacement-first", "polarization-first"] = "displacement-first"
    stress: Literal["tensile", "compressive"] = "tensile"
