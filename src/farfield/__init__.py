"""farfield: long-range electrostatics for machine-learning interatomic potentials.

The far field of any short-range potential, learned from energies and forces alone: latent charges and their Ewald sum,
read out as charges, dipoles and Born effective charges. Units are eV, Å and e everywhere (`farfield.units`).

The names below are loaded when first used, so that ``import farfield`` needs only torch and numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from farfield.atoms.batch import AtomicBatch
    from farfield.electrostatics.coulomb import Coulomb
    from farfield.electrostatics.dispersion import Dispersion
    from farfield.electrostatics.multipoles import Multipoles
    from farfield.electrostatics.response import LinearResponse
    from farfield.electrostatics.susceptibility import Response
    from farfield.engines.ase import Calculator
    from farfield.hosts.augment import augment
    from farfield.model import Model, load
    from farfield.potentials.long_range import LongRange

__all__ = [
    "AtomicBatch",
    "Calculator",
    "Coulomb",
    "Dispersion",
    "LinearResponse",
    "LongRange",
    "Model",
    "Multipoles",
    "Response",
    "__version__",
    "augment",
    "load",
]

_HOME = {
    "AtomicBatch": "farfield.atoms.batch",
    "Calculator": "farfield.engines.ase",
    "Coulomb": "farfield.electrostatics.coulomb",
    "Dispersion": "farfield.electrostatics.dispersion",
    "LinearResponse": "farfield.electrostatics.response",
    "LongRange": "farfield.potentials.long_range",
    "Model": "farfield.model",
    "Multipoles": "farfield.electrostatics.multipoles",
    "Response": "farfield.electrostatics.susceptibility",
    "augment": "farfield.hosts.augment",
    "load": "farfield.model",
}


def __getattr__(name: str) -> object:
    """Load a public name from its room when it is first asked for."""
    if name not in _HOME:
        raise AttributeError(f"module 'farfield' has no attribute '{name}'. Its names are {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
