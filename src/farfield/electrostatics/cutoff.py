"""Where the reciprocal sum ends: the cutoff from the accuracy asked for, and the smooth switch to zero before it.

A sum cut sharply jumps whenever a change of the cell moves a vector k through the cutoff. Here the Gaussian factor is
multiplied by a switch that goes from 1 to 0 with three continuous derivatives, so that energy, forces and stress are
continuous and differentiable functions of the cell.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from farfield.electrostatics.graphs import constant

#: The switch acts on SWITCH_START · cutoff ≤ |k| ≤ cutoff.
SWITCH_START = 0.92

#: Measured ratio of the relative RMS force error to `_tail` for charges, dipoles and quadrupoles, with a margin, at
#: σ = 1 Å: the worst of liquid water (whose neutral molecules cancel most of the long waves, and with them of the
#: force), molten salt and random points. Away from 1 Å it grows, at most as max(σ, 1/σ)² between 0.7 and 2 Å.
_RATIO = (9.5, 2.2, 2.0)


def _tail(x: float, order: int) -> float:
    """Share of the RMS force that lies beyond σ|k| = x for uncorrelated multipoles of an order.

    Forces of multipoles of order l have the spectrum k^{2l} exp(−σ²k²), so this is the square root of the regularized
    incomplete gamma function Γ(l+½, x²)/Γ(l+½).
    """
    argument = torch.tensor([order + 0.5, x * x], dtype=torch.float64)
    return math.sqrt(float(torch.special.gammaincc(argument[0], argument[1])))


@functools.lru_cache(maxsize=4096)
def reduced_cutoff(accuracy: float, order: int, smearing: float) -> float:
    """Cutoff σ|k| at which the relative RMS force error reaches ``accuracy``.

    Parameters
    ----------
    accuracy
        Relative RMS error of the forces.
    order
        Highest multipoles in the sum: 0 charges, 1 dipoles, 2 quadrupoles.
    smearing
        σ (Å).
    """
    ratio = _RATIO[order] * max(smearing, 1.0 / smearing) ** 2
    low, high = 0.0, 40.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        if _tail(middle, order) * ratio > accuracy:
            low = middle
        else:
            high = middle
    # The switch takes about half of what lies between its start and its end.
    return high / (0.5 * (1.0 + SWITCH_START))


def switch(squared: Tensor) -> Tensor:
    """Smooth step of (|k|/cutoff)²: 1 up to SWITCH_START², 0 from 1 on, with three continuous derivatives."""
    start = SWITCH_START**2
    t = (squared * (1.0 / (1.0 - start)) - start / (1.0 - start)).clamp(0.0, 1.0)
    # 1 − t⁴ (35 − 84 t + 70 t² − 20 t³), in few passes over the array
    minus_84, one, thirty_five = constant(((-84.0,), (1.0,), (35.0,)), t).unbind()
    polynomial = torch.addcmul(minus_84, torch.rsub(t, 70.0, alpha=20.0), t)
    polynomial = torch.addcmul(thirty_five, polynomial, t)
    t2 = t * t
    return torch.addcmul(one, polynomial * t2, t2, value=-1.0)


@functools.lru_cache(maxsize=4096)
def self_factors(cutoff: float) -> tuple[float, float, float]:
    """Shares of the self-energy of charges, dipoles and quadrupoles that a sum truncated at σ|k| = ``cutoff`` holds.

    The reciprocal sum contains each Gaussian's interaction with itself only up to the cutoff; subtracting just that,
    and not the whole self-energy, keeps the truncation from shifting energies and potentials. In a large cell it is,
    for order l, the fraction ∫ x^{2l} e^{−x²/2} switch dx / ∫ x^{2l} e^{−x²/2} dx.
    """
    x = (torch.arange(20000, dtype=torch.float64) + 0.5) * (cutoff / 20000)
    density = torch.exp(-0.5 * x * x) * switch((x / cutoff) ** 2) * (cutoff / 20000) * math.sqrt(2.0 / math.pi)
    charge, dipole, quadrupole = (float((density * x**power).sum()) for power in (0, 2, 4))
    return charge, dipole, quadrupole / 3.0
