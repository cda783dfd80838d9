"""Observables: dipoles, polarization, Born charges, polarizability, forces in a field, as functions of a model.

A model is anything that gives multipoles with their graph (`MultipoleModel`). All results are physical: the latent
multipoles are multiplied by ``scale``, the gauge sign times √ε of each system; `farfield.model.Model` does so by
itself.
"""

from farfield.observables.born import born_charges, forces_in_field, forces_on_periodic_charges, impose_sum_rule
from farfield.observables.harmonics import fitted_coefficients, flat_coefficients
from farfield.observables.moments import (
    MultipoleModel,
    balanced_charges,
    dipole,
    dipole_moment,
    physical,
    polarization,
    quadrupole,
    quadrupole_moment,
)
from farfield.observables.polarizability import (
    PolarizableModel,
    atomic_polarizabilities,
    check_stability,
    effective_epsilon,
    polarizability,
    stability,
)

__all__ = [
    "MultipoleModel",
    "PolarizableModel",
    "atomic_polarizabilities",
    "balanced_charges",
    "born_charges",
    "check_stability",
    "dipole",
    "dipole_moment",
    "effective_epsilon",
    "fitted_coefficients",
    "flat_coefficients",
    "forces_in_field",
    "forces_on_periodic_charges",
    "impose_sum_rule",
    "physical",
    "polarizability",
    "polarization",
    "quadrupole",
    "quadrupole_moment",
    "stability",
]
