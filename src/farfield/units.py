"""Physical constants and conversions, each with its source.

farfield computes in one system of units: energy eV, length Å, charge e, dipole e·Å, quadrupole e·Å²,
potential V, field V/Å, polarizability e²·Å²/eV, stress eV/Å³ (tensile positive).
"""

import math

#: Coulomb constant e²/(4πε₀) in eV·Å (CODATA 2018/2022).
COULOMB_CONSTANT = 14.399645478

#: 1/(2ε₀) in eV·Å/e²: the prefactor of reciprocal-space sums.
INVERSE_TWO_EPSILON_0 = 2.0 * math.pi * COULOMB_CONSTANT

#: Debye in e·Å: 10⁻²¹ C·m²/s divided by c·e (CODATA 2018, exact by definition of e and c).
DEBYE = 1e-21 / 299792458.0 / 1.602176634e-19 * 1e10

#: Bohr radius in Å (CODATA 2018).
BOHR = 0.529177210903

#: Hartree energy in eV (CODATA 2018).
HARTREE = 27.211386245988
