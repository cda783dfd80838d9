"""A displacement as a sum of lattice harmonics: what makes Born charges of periodic systems well defined.

In a cell the displacement between two atoms is known only up to cell vectors, so it has to be written with functions
that are periodic in the fraction s of the cell: s ≈ Σ_m c_m sin(2π m s)/(2π m). One harmonic (c_1 = 1) is the
published formula, wrong by (2πs)²/6; the combinations here are better, and exact as their number grows for |s| < ½.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def flat_coefficients(harmonics: int) -> Float[Tensor, " harmonics"]:
    """Coefficients of the maximally flat combination, c_m = 2(−1)^{m+1} (M!)²/((M−m)!(M+m)!).

    All derivatives of Σ_m c_m sin(m x)/m − x up to order 2M vanish at x = 0: the error is O(x^{2M+1}).

    Parameters
    ----------
    harmonics
        Number M of harmonics, at least 1.

    Returns
    -------
    Tensor
        c_1 … c_M, shape (harmonics,), float64.

    Raises
    ------
    ValueError
        If ``harmonics`` is below 1.
    """
    _check(harmonics)
    top = math.factorial(harmonics) ** 2
    values = [
        # Exact integers up to this one division.
        2 * (-1) ** (m + 1) * top / (math.factorial(harmonics - m) * math.factorial(harmonics + m))
        for m in range(1, harmonics + 1)
    ]
    return torch.tensor(values, dtype=torch.float64)


def fitted_coefficients(
    harmonics: int, reach: Float[Tensor, " *shape"], points: int = 96
) -> Float[Tensor, "*shape harmonics"]:
    """Coefficients by weighted least squares on |s| ≤ ``reach``: in small cells as good as many more flat ones.

    The *relative* error of the displacement is minimized with the weight (1 − t²)⁸, t = s/reach, because charges
    respond to near atoms much more than to those at the edge of the receptive field. Against Born charges of
    supercells this fit is better than, or as good as, the flat combination of the same length, for receptive fields of
    one and of two layers; fits without the weight are worse for two.

    Parameters
    ----------
    harmonics
        Number M of harmonics, at least 1.
    reach
        Largest fraction of the cell over which charges respond, any shape: receptive radius over perpendicular height.
        Values are clamped to [0.02, 0.48]: at ½ the displacement jumps and no combination follows it.
    points
        Number of points of the fit.

    Returns
    -------
    Tensor
        c_1 … c_M in the last dimension, float64.

    Raises
    ------
    ValueError
        If ``harmonics`` is below 1.
    """
    _check(harmonics)
    reach = reach.to(torch.float64).clamp(0.02, 0.48)
    t = ((torch.arange(points, dtype=torch.float64) + 0.5) / points).to(reach.device)
    weight = (1.0 - t**2) ** 4 / t
    phase = 2.0 * math.pi * reach[..., None] * t
    m = torch.arange(1, harmonics + 1, dtype=torch.float64, device=reach.device)
    basis = torch.sin(phase[..., None] * m) / m
    # Fit what the flat combination leaves: the columns are nearly dependent for a small reach, where nothing is left.
    flat = flat_coefficients(harmonics).to(reach.device)
    rest = phase - basis @ flat
    correction = torch.linalg.pinv(weight[:, None] * basis, rtol=1e-12) @ (weight * rest)[..., None]
    return flat + correction[..., 0]


def _check(harmonics: int) -> None:
    if isinstance(harmonics, bool) or not isinstance(harmonics, int) or harmonics < 1:
        raise ValueError(
            f"`harmonics` is {harmonics!r} but must be a whole number of at least 1 (1: published formula)"
        )
