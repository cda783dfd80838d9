"""Radial functions of bond lengths."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def polynomial_cutoff(r: Float[Tensor, " *pairs"], cutoff: float, p: int = 6) -> Float[Tensor, " *pairs"]:
    """Smooth cutoff that is 1 at r = 0 and reaches 0 at ``cutoff`` with two continuous derivatives.

    1 − (p+1)(p+2)/2 x^p + p(p+2) x^(p+1) − p(p+1)/2 x^(p+2), x = r/cutoff (Gasteiger et al., arXiv 2003.03123, eq. 8).
    """
    x = (r / cutoff).clamp(max=1.0)
    return 1.0 + x**p * (-0.5 * (p + 1) * (p + 2) + x * (p * (p + 2) - 0.5 * p * (p + 1) * x))


def bessel_basis(r: Float[Tensor, " *pairs"], cutoff: float, n: int) -> Float[Tensor, "*pairs n"]:
    """Bessel functions √(2/r_c) sin(nπr/r_c)/r, n = 1 … (Gasteiger et al., arXiv 2003.03123, eq. 7); r > 0."""
    frequencies = torch.arange(1, n + 1, dtype=r.dtype, device=r.device) * (math.pi / cutoff)
    return math.sqrt(2.0 / cutoff) * torch.sin(r[..., None] * frequencies) / r[..., None]
