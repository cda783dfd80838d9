r"""The damped 1/r⁶ interaction and its Fourier transform.

With a = 1/(√2 σ), y = a²r² and b = k/2a = σk/√2,

    f(r) = [1 − (1 + y + y²/2) e^{−y}]/r⁶ = ½ a⁶ G_2(y) ,   G_n(y) = ∫₀¹ tⁿ e^{−yt} dt ,
    f̂(k) = (2 π^{3/2} a³/3) [√π b³ erfc(b) + (½ − b²) e^{−b²}] .

G_n is smooth, positive and has the derivative −G_{n+1}, so that f is a smooth function of r² down to r = 0, where it is
a⁶/6. f̂ decays like that of Gaussian charges, as e^{−b²}/k², and is finite at k = 0.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

#: Below this y the series is taken, above it the closed form, which there cancels a digit or two.
_SERIES_LIMIT = 3.0

#: e^{−y} times any power of y that is met is below rounding from here on.
_GONE = 80.0


@functools.cache
def _series_terms(epsilon: float) -> int:
    """Count the terms after which the series of G_0, the slowest, is complete at the largest y it is used for."""
    term, total, count = 1.0, 1.0, 0
    while term > 0.1 * epsilon * total:
        count += 1
        term *= _SERIES_LIMIT / (count + 1)
        total += term
    return count


def _near(y: Tensor, order: int) -> Tensor:
    """G_n for y ≤ _SERIES_LIMIT from a series of positive terms, e^{−y} Σ_j y^j/((n+1)(n+2)…(n+j+1))."""
    one = torch.ones((), dtype=y.dtype, device=y.device)
    series = torch.ones_like(y)
    for j in range(_series_terms(torch.finfo(y.dtype).eps), 0, -1):
        series = torch.addcmul(one, series, y, value=1.0 / (order + j + 1))
    return series.mul_(torch.exp(-y)).mul_(1.0 / (order + 1))


def _far(y: Tensor, order: int) -> Tensor:
    """G_n for y ≥ _SERIES_LIMIT: n!/y^{n+1} [1 − e^{−y} Σ_{k≤n} y^k/k!]."""
    # Where the exponential has long vanished a polynomial of y itself could overflow.
    short = y.clamp(max=_GONE)
    polynomial = torch.ones_like(y)
    for k in range(order, 0, -1):
        polynomial = polynomial.mul_(short).mul_(1.0 / k).add_(1.0)
    share = polynomial.mul_(torch.exp(-short)).neg_().add_(1.0)
    return share.mul_(math.factorial(order)).div_(y ** (order + 1))


class _Gamma(torch.autograd.Function):
    """G_n(y): its derivative is −G_{n+1}, to any order."""

    @staticmethod
    def forward(ctx, y, order):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(y)
        ctx.order = order
        near = y < _SERIES_LIMIT
        value = _far(y.clamp(min=_SERIES_LIMIT), order)
        if y.device.type != "cpu":
            return torch.where(near, _near(y.clamp(max=_SERIES_LIMIT), order), value)
        # Few pairs are that close: on the CPU, where it costs no synchronization, only those take the series.
        where = near.reshape(-1).nonzero().squeeze(1)
        flat = value.reshape(-1).index_copy(0, where, _near(y.reshape(-1)[where], order))
        return flat.reshape(y.shape)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (y,) = ctx.saved_tensors
        return -gradient * _Gamma.apply(y, ctx.order + 1), None


def dispersion_kernel(squared_distance: Tensor, exponent: Tensor) -> Tensor:
    """Damped 1/r⁶ interaction f at squared distances, differentiable to any order in them.

    Parameters
    ----------
    squared_distance
        r² (Å²), any shape; zero is allowed.
    exponent
        a = 1/(√2 σ) (1/Å), broadcastable to the shape of ``squared_distance``. No gradient in it.

    Returns
    -------
    Tensor
        f (Å⁻⁶), of the shape of ``squared_distance``.
    """
    return (0.5 * exponent**6) * _Gamma.apply(squared_distance * exponent**2, 2)


def dispersion_transform(squared: Tensor, smearing: Tensor) -> Tensor:
    """Fourier transform f̂ of f at reciprocal vectors, differentiable twice in σ²k².

    Parameters
    ----------
    squared
        σ²k², any shape; zero is allowed.
    smearing
        σ (Å), broadcastable to it. No gradient in it.

    Returns
    -------
    Tensor
        f̂ (Å⁻³), of the shape of ``squared``.
    """
    y = 0.5 * squared
    # b³ has no second derivative in b² at 0: k = 0, which never moves, gets the value of the limit by another way.
    origin = y == 0
    b = torch.where(origin, 1.0, y).sqrt()
    # erfcx = e^{b²} erfc does not underflow; it leaves a small difference of order b⁻⁴ relative to its terms.
    bracket = torch.where(origin, 0.5, math.sqrt(math.pi) * b**3 * torch.special.erfcx(b) + 0.5 - b * b)
    return (2.0 * math.pi**1.5 / 3.0) * (0.5**0.5 / smearing) ** 3 * torch.exp(-y) * bracket
