r"""The force error of a particle mesh by theory: what atoms anywhere on it do to each other, and to themselves.

A wave k of the mesh is also the waves k_m = k + 2πm/h, which splines let through by W_m = W(k_m). Between two atoms at
independent places all terms of the force are uncorrelated, so that their squares add up. With v = 4π e^{−k²/2}/k²
(σ = 1, k_e = 1), the mesh's interaction g = v W_0²/(Σ W_m²)², unit multipoles of order l turned at random, whose forms
D(k) have the mean square c_l k^{2l}, and atoms of density ρ,

    e² = ρ c_l² ∫ d³k/(2π)³ { k^{4l+2} (g W_0² − v)² + Σ_{(m,m')≠0} g² k_m^{2l+2} W_m² k_m'^{2l} W_m'²
                              + Σ_{m≠0} k_m^{4l+2} v_m² }

over the waves of the mesh. The same aliases let an atom pull on itself, by where it stands between the points and
however far the others are: along each axis, with G = 2π/h,

    s² = 6 G² ⟨( ½ ∫ d³k/(2π)³ g Σ_m D(k_m) D(k_{m+1}) W_m W_{m+1} )²⟩ .

(Hockney and Eastwood, Computer Simulation Using Particles, ch. 8; Cerdà et al., J. Chem. Phys. 129, 234104, for
dipoles; Ballenegger et al., Comput. Phys. Commun. 182, 1919, for the pull on itself.) Forces themselves follow from
density and distances (`typical_force`).
"""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np

#: ⟨D(k)²⟩/k^{2l} of unit charges, dipoles and quadrupoles (u² = 1, Q:Q = 1) turned at random.
_FORMS = (1.0, 1.0 / 3.0, 1.0 / 30.0)

#: r^{4l+4} ⟨F²⟩ between two of them, points at a distance r: c² (2n−1)!! n!, n = 2l + 1, with c = 1, 1/3, 1/20.
_PAIRS = (1.0, 10.0, 283.5)

#: Where Gaussians leave nothing (σk), and points of the quadrature along an axis.
_HIGHEST, _POINTS = 8.0, 16

#: Neighbours are at least this far apart, in units of (volume per atom)^⅓; and at most so far (σ) in dilute systems,
#: whose atoms are mostly those of molecules: to resolve what single multipoles far apart do to each other, meshes would
#: take gigabytes.
_APART, _FARTHEST = 0.8, 3.0


def _form(degree: int, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> list[np.ndarray]:
    """D of a basis of unit multipoles for waves k = (x, y, z), the powers of i left out."""
    if degree == 0:
        return [np.ones_like(x)]
    if degree == 1:
        return [x, y, z]
    half, eighth = math.sqrt(0.5), math.sqrt(0.125)
    crossed = [half * x * y, half * x * z, half * y * z]
    return [*crossed, eighth * (x * x - y * y), math.sqrt(1.0 / 24.0) * (x * x + y * y - 2.0 * z * z)]


def _kernel(squared: np.ndarray) -> np.ndarray:
    return 4.0 * math.pi * np.exp(-0.5 * squared) / squared


def _summed(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """Sum of what belongs to three axes, at all points."""
    return first[:, None, None] + second[None, :, None] + third[None, None, :]


def _multiplied(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    return first[:, None, None] * second[None, :, None] * third[None, None, :]


@functools.lru_cache(maxsize=1024)
def force_error(degree: int, order: int, spacing: float) -> tuple[float, float]:
    """Mean square force errors of a mesh, for unit multipoles of one order, σ = 1 and k_e = 1.

    Parameters
    ----------
    degree
        The multipoles: 0 charges, 1 dipoles, 2 quadrupoles.
    order
        Of the splines.
    spacing
        h/σ, the same along all axes.

    Returns
    -------
    tuple of float
        e²/ρ of other atoms, and s² of the atom itself.
    """
    reciprocal = 2.0 * math.pi / spacing
    top = min(math.pi / spacing, _HIGHEST)
    axis = (np.arange(_POINTS // 2) + 0.5) * (2.0 * top / _POINTS)  # the other half is alike
    waves = axis + reciprocal * np.array([0, -1, 1, -2, 2, -3, 3])[:, None]
    splines = np.sinc(waves * (spacing / (2.0 * math.pi))) ** (2 * order)
    # Logarithms, for what the mesh errs by must not drown in the rounding of what it gets right.
    share = np.log1p((splines[1:] / splines[0]).sum(0))
    share = _summed(share, share, share)
    own = _multiplied(splines[0], splines[0], splines[0])
    squared = _summed(axis**2, axis**2, axis**2)
    interaction = _kernel(squared) * np.exp(-2.0 * share) / own
    pulled = pulling = beyond = np.zeros_like(squared)
    for images in itertools.islice(itertools.product(range(3), repeat=3), 1, None):
        through = _multiplied(*(splines[image] for image in images))
        theirs = _summed(*(waves[image] ** 2 for image in images))
        pulled = pulled + theirs ** (degree + 1) * through
        pulling = pulling + theirs**degree * through
        beyond = beyond + theirs ** (2 * degree + 1) * _kernel(theirs) ** 2
    missed = (_kernel(squared) * np.expm1(-2.0 * share)) ** 2 * squared ** (2 * degree + 1)
    whole = own * squared**degree
    crossed = interaction**2 * (pulled * (whole + pulling) + squared * whole * pulling)
    weight = (top / _POINTS / math.pi) ** 3
    between = 8.0 * _FORMS[degree] ** 2 * weight * float((missed + crossed + beyond).sum())
    return between, _pull_on_itself(degree, order, axis, 8.0 * weight * interaction * own, reciprocal)


def _pull_on_itself(degree: int, order: int, axis: np.ndarray, weights: np.ndarray, reciprocal: float) -> float:
    """s², from the positive waves of a mesh along an axis, and g W_0² of all times the weights of the quadrature."""
    size = 2 * degree + 1
    form = np.zeros((size, size))
    for sign, image in itertools.product((-1.0, 1.0), (-2, -1, 0, 1)):
        left, right = (sign * axis + step * reciprocal for step in (image, image + 1))
        # W of an alias over W_0: sin(πkh) is the same but for its sign
        through = (-1.0) ** order * (axis**2 / (left * right)) ** order
        forms = [_form(degree, *np.meshgrid(x, axis, axis, indexing="ij")) for x in (left, right)]
        weighted = 0.25 * weights * through[:, None, None]
        for (row, one), (column, other) in itertools.product(enumerate(forms[0]), enumerate(forms[1])):
            # All others are odd in y or z.
            if row == column or min(row, column) == 3:
                form[row, column] += float((weighted * one * other).sum())
    form = 0.5 * (form + form.T)
    # ⟨(x·A·x)²⟩ of a unit vector in so many dimensions
    return 6.0 * reciprocal**2 * float(np.trace(form) ** 2 + 2.0 * (form * form).sum()) / (size * (size + 2))


def typical_force(degree: int, atoms: int, volume: float) -> float:
    """RMS force between unit multipoles of one order with independent signs and directions, for σ = 1 and k_e = 1.

    Their neighbours stand as far away as the volume allows, or anywhere where the Gaussians are wider than that: the
    lesser of both forces.

    Parameters
    ----------
    degree
        The multipoles: 0 charges, 1 dipoles, 2 quadrupoles.
    atoms
        Number of atoms.
    volume
        Volume that they fill, in σ³.
    """
    density = max(atoms - 1, 1) / volume
    distance = min(_APART * (volume / atoms) ** (1.0 / 3.0), _FARTHEST)
    beyond = 4.0 * math.pi * _PAIRS[degree] / ((4 * degree + 1) * distance ** (4 * degree + 1))
    anywhere = 4.0 * _FORMS[degree] ** 2 * math.gamma(2 * degree + 0.5)
    return math.sqrt(density * min(beyond, anywhere))
