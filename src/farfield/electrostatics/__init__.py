"""Electrostatics of smeared multipoles: the sum itself, without any learning.

Gaussian charges, dipoles and quadrupoles interact through erf(r/(√2 σ))/r. `Coulomb` sums that openly or by Ewald, for
batches that mix both, and gives energy, potential, field and field gradient, all differentiable in positions, cell and
multipoles. `LinearResponse` adds charges and dipoles that follow potential and field. `Dispersion` sums a damped 1/r⁶
attraction in the same ways. This room needs only torch and numpy.
"""
