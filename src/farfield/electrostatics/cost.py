"""What the sums cost, and the mesh that reaches an accuracy for the least: how `Coulomb` chooses its method.

Times are estimates for energy and forces on one core, good enough to tell which sum is faster. On other machines the
crossing points move little: all three sums are bound by arithmetic.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from farfield.electrostatics.mesh import good_size
from farfield.electrostatics.mesh_error import force_error, typical_force

#: Spacings h/σ of `_ERRORS`.
_SPACINGS = (1.0, 0.8, 2.0 / 3.0, 4.0 / 7.0, 0.5, 0.4, 1.0 / 3.0, 0.25)

#: log₁₀ of the relative RMS force error of the mesh by highest multipoles (0 charges, 1 dipoles, 2 quadrupoles) and
#: order of the splines: the worse of liquid water and molten salt at σ = 1 Å, from `benchmarks/mesh_errors.py`. From
#: order 5 on, as the field gradient differentiated twice has four derivatives of a spline; at 10⁻¹ alone would order 4
#: be faster.
_ERRORS: dict[int, dict[int, tuple[float, ...]]] = {
    0: {
        5: (-1.39, -1.98, -2.44, -2.89, -3.19, -3.66, -4.05, -4.62),
        6: (-1.59, -2.27, -2.82, -3.38, -3.73, -4.29, -4.78, -5.46),
        7: (-1.72, -2.54, -3.21, -3.91, -4.37, -5.1, -5.7, -6.61),
        8: (-1.82, -2.73, -3.5, -4.33, -4.86, -5.7, -6.41, -7.41),
    },
    1: {
        5: (-1.35, -1.77, -2.14, -2.5, -2.71, -3.05, -3.3, -3.74),
        6: (-1.55, -2.07, -2.56, -3.03, -3.35, -3.83, -4.22, -4.82),
        7: (-1.68, -2.34, -2.93, -3.54, -3.94, -4.54, -5.0, -5.76),
        8: (-1.78, -2.54, -3.22, -3.96, -4.46, -5.22, -5.81, -6.74),
    },
    2: {
        6: (-1.32, -1.72, -2.07, -2.42, -2.65, -3.02, -3.26, -3.67),
        7: (-1.39, -1.99, -2.47, -2.93, -3.25, -3.74, -4.11, -4.75),
        8: (-1.55, -2.19, -2.75, -3.32, -3.73, -4.37, -4.8, -5.56),
    },
}

#: Other structures and positions of the mesh than those of the table may err by this factor more.
_MARGIN = 1.3

#: On a mesh an atom pulls on itself, by where it stands between the points. For multipoles of order l that force goes
#: as σ^{−2(l+1)} while those between atoms do not grow when σ falls: below 1 Å the relative error grows as σ⁻² for
#: charges and by this power of 1/σ more for each order, as measured down to 0.4 Å.
_POWER = 1.5

#: Forces of N atoms may err by a factor 1 + this/N more: with few, those of a pair may cancel and the pull of an atom
#: on itself be the largest, and no mean over many positions helps.
_FEW = 6.0

#: The table is good where charges lead, for atoms as dense as in a liquid. For dipoles or quadrupoles without charges,
#: and for fewer atoms than this, theory is asked, too.
_SPARSE = 32

#: Charges lead where dipoles (e·Å) and quadrupoles (e·Å²) are at most so many times as strong, by their RMS over the
#: atoms: as in the water of the table.
LEADING = (0.6, 0.78)

#: In cells of fewer atoms (Å⁻³) than this they have to lead by the square root more: the pull of an atom on itself is
#: the same, the forces of the others are smaller.
DENSE = 0.1

#: Theory knows the error to a factor of this, by where the atoms happen to stand and how unequal their multipoles are
#: (seen: 1.7 at most, for 3 to 81 atoms and σ of 0.5 to 2 Å; see also tests/electrostatics/test_mesh_error.py).
_SPREAD = 2.0

#: Opposite charges stand together, and their forces are less by this factor than those of charges at random.
_SCREENING = 5.0

#: In a cell shorter than this many σ all waves are shorter than most of those the table is made of; the spacing shrinks
#: with the cell.
_SHORT = 4.2

#: Constants of the estimates (ns) for charges, up to dipoles, and up to quadrupoles, fitted to times of water in bulk,
#: as slabs and as droplets:
#:   python -m benchmarks.cost_model
#: Of a mesh: each atom's order² rows of points, a vector each; each point times log₂ of their number; the calls.
_MESH = ((5.0, 1.05, 1.0e6), (6.6, 1.13, 1.1e6), (13.9, 1.03, 1.1e6))

#: Of Ewald: each wave and atom; each wave; the calls.
_EWALD = ((0.157, 39.0, 1.7e6), (0.256, 51.0, 1.9e6), (0.376, 47.0, 2.5e6))

#: Of the open sum: each of N² pairs; the calls.
_OPEN = ((4.6, 3.3e5), (6.8, 3.5e5), (14.1, 4.1e5))


@dataclass(frozen=True)
class MeshSize:
    """Points along each axis, order of the splines, and an estimate of the time (ns)."""

    shape: tuple[int, int, int]
    order: int
    cost: float


def _spacing_on(row: Sequence[float], wanted: float) -> float:
    """h/σ where log₁₀ of an error, given at `_SPACINGS`, falls to ``wanted``."""
    points = list(zip(_SPACINGS, row, strict=True))
    if wanted > row[0]:
        return _SPACINGS[0]
    for (wide, rough), (narrow, fine) in zip(points, points[1:], strict=False):
        if fine <= wanted:
            share = (wanted - rough) / (fine - rough)
            return wide * (narrow / wide) ** share
    # Beyond them on the line of the last two points.
    (wide, rough), (narrow, fine) = points[-2:]
    return narrow * (narrow / wide) ** ((wanted - fine) / (fine - rough))


@functools.lru_cache(maxsize=4096)
def mesh_spacing(accuracy: float, degree: int, order: int, smearing: float) -> float:
    """Spacing (Å) at which a mesh reaches a relative RMS force error for charges, and for what is beside them.

    Parameters
    ----------
    accuracy
        The error.
    degree
        Highest multipoles: 0 charges, 1 dipoles, 2 quadrupoles.
    order
        Of the splines.
    smearing
        σ (Å). Above 1 Å the error grows as it does for Ewald sums, at most as σ²; below see `_POWER`.
    """
    growth = smearing**2 if smearing > 1.0 else smearing ** -(2.0 + _POWER * degree)
    return smearing * _spacing_on(_ERRORS[degree][order], math.log10(accuracy / (_MARGIN * growth)))


@functools.lru_cache(maxsize=4096)
def spacing_by_theory(
    accuracy: float, degree: int, order: int, smearing: float, atoms: int, volume: float, charged: bool
) -> float:
    """Spacing (Å) at which a mesh reaches a relative RMS force error by theory (`farfield.electrostatics.mesh_error`).

    Parameters
    ----------
    accuracy, degree, order, smearing
        As in `mesh_spacing`.
    atoms
        Number of atoms.
    volume
        Volume that they fill (Å³).
    charged
        Whether charges lead; else the highest multipoles are taken to be alone, which is the worst case.
    """
    reduced = volume / smearing**3
    density = max(atoms - 1, 1) / reduced
    if charged:
        strengths = [1.0, *(most / smearing**place for place, most in enumerate(LEADING[:degree], 1))]
        force = typical_force(0, atoms, reduced) / _SCREENING
    else:
        strengths = [0.0] * degree + [1.0]
        force = typical_force(degree, atoms, reduced)

    def log_error(spacing: float) -> float:
        error = 0.0
        for place, strength in enumerate(strengths):
            between, itself = force_error(place, order, spacing) if strength else (0.0, 0.0)
            error += strength**2 * math.sqrt(density * between + itself)
        return math.log10(_SPREAD * error / force)

    return smearing * _spacing_on([log_error(spacing) for spacing in _SPACINGS], math.log10(accuracy))


@functools.lru_cache(maxsize=4096)
def mesh_size(
    accuracy: float,
    degree: int,
    smearing: float,
    atoms: int,
    lengths: tuple[float, ...],
    volume: float,
    charged: bool = True,
) -> MeshSize:
    """Cheapest mesh that reaches an accuracy.

    Parameters
    ----------
    accuracy, degree, smearing
        As in `mesh_spacing`.
    atoms
        Number of atoms.
    lengths
        Lengths of the (padded) cell vectors (Å).
    volume, charged
        As in `spacing_by_theory`.
    """
    sizes = []
    share = min(1.0, max(lengths) / (_SHORT * smearing))
    alone = degree > 0 and not charged
    for order in _ERRORS[degree]:
        spacing = mesh_spacing(accuracy / (1.0 + _FEW / atoms), degree, order, smearing)
        if alone or atoms < _SPARSE:
            by_theory = spacing_by_theory(accuracy, degree, order, smearing, atoms, volume, not alone)
            spacing = min(spacing, by_theory)
        shape = tuple(good_size(length / (share * spacing), even=axis == 2) for axis, length in enumerate(lengths))
        size = (shape[0], shape[1], shape[2])
        sizes.append(MeshSize(size, order, mesh_cost(atoms, size, order, degree)))
    return min(sizes, key=lambda size: size.cost)


def mesh_cost(atoms: int, shape: tuple[int, int, int], order: int, degree: int) -> float:
    """Estimate of the time of a sum on a mesh (ns) for multipoles up to a degree, by compiled splines of an order."""
    of_stencil, of_transform, of_calls = _MESH[degree]
    points = math.prod(shape)
    return atoms * order**2 * of_stencil + points * math.log2(points) * of_transform + of_calls


def waves_of(ranges: tuple[int, ...]) -> int:
    """Return the number of waves that an Ewald sum computes, from their largest indices along the axes."""
    return math.prod(2 * (n + 1) for n in ranges)


def ewald_cost(atoms: int, ranges: tuple[int, ...], degree: int) -> float:
    """Estimate of the time of an Ewald sum (ns), from the largest indices of its reciprocal vectors along the axes."""
    of_pair, of_wave, of_calls = _EWALD[degree]
    return waves_of(ranges) * (atoms * of_pair + of_wave) + of_calls


def open_cost(atoms: int, degree: int) -> float:
    """Estimate of the time of a direct sum over the pairs of an open system (ns)."""
    of_pair, of_calls = _OPEN[degree]
    return atoms**2 * of_pair + of_calls
