r"""Radial kernels of Gaussian multipoles: the derivatives of erf(a r)/r, smooth down to r = 0.

With a = 1/(√2 σ) and x = r² the kernels are

    B_0(x) = erf(a r)/r ,    B_{n+1} = −(1/r) dB_n/dr = −2 dB_n/dx ,

and every Cartesian derivative of the interaction of two Gaussians is a polynomial in the bond vector times some B_n.
They are Boys functions in disguise, B_n = (2/√π) 2ⁿ a^{2n+1} F_n(a²x) with F_n(y) = ∫₀¹ t^{2n} e^{−yt²} dt, and are
computed as

* at short distance: F_N of the highest order from its series of positive terms, e^{−y} Σ_j (2y)^j /
((2N+1)(2N+3)…(2N+2j+1)),
  the lower orders by the downward recurrence (2n+1) F_n = 2y F_{n+1} + e^{−y}, which only adds positive numbers;
* beyond (r = 2σ for N = 7, less for lower orders): F_0 from erf and the upward recurrence, which loses a digit there.

So they hold to rounding in float32 and float64 at any distance, two atoms at one point included.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from farfield.electrostatics.graphs import is_traced, operator

#: Digits of the last place that the upward recurrence may lose where it takes over from the series.
_LOSS = 8.0

#: Orders that are tabulated beyond the ones asked for, so that two backward passes find theirs ready.
_ORDERS_IN_RESERVE = 2


@functools.cache
def series_limit(highest: int) -> float:
    """Value of y = a²r² at which the two ways of computing F_0 … F_highest meet; 2 (r = 2σ) for the seventh.

    The upward recurrence multiplies the rounding of F_0 by Π (2n+1)/2y.
    """
    growth = math.prod(2 * n + 1 for n in range(highest))
    return max(0.1, 0.5 * (growth / _LOSS) ** (1.0 / max(highest, 1)))


@functools.cache
def series_terms(highest: int, epsilon: float) -> int:
    """Count the terms after which the series of F_highest is complete at the largest y it is used for."""
    term, total, count = 1.0, 1.0, 0
    while term > 0.1 * epsilon * total:
        count += 1
        term *= 2.0 * series_limit(highest) / (2 * highest + 2 * count + 1)
        total += term
    return count


def _boys_near(y: Tensor, highest: int) -> list[Tensor]:
    """F_0 … F_highest for y ≤ series_limit(highest), by series and downward recurrence."""
    gaussian = torch.exp(-y)
    two_y = 2.0 * y
    one = torch.ones((), dtype=y.dtype, device=y.device)
    series = torch.ones_like(y)
    for j in range(series_terms(highest, torch.finfo(y.dtype).eps), 0, -1):
        series = torch.addcmul(one, series, two_y, value=1.0 / (2 * highest + 2 * j + 1))
    values = [series.mul_(gaussian).mul_(1.0 / (2 * highest + 1))]
    for n in range(highest - 1, -1, -1):
        values.append(torch.addcmul(gaussian, two_y, values[-1]).mul_(1.0 / (2 * n + 1)))
    return values[::-1]


def _boys_far(y: Tensor, highest: int) -> list[Tensor]:
    """F_0 … F_highest for y ≥ series_limit(highest), by erf and upward recurrence."""
    root = torch.sqrt(y)
    inverse = root.reciprocal()
    values = [root.erf_().mul_(inverse).mul_(0.5 * math.sqrt(math.pi))]
    if highest > 0:
        half_inverse = inverse.square_().mul_(0.5)
        gaussian = torch.neg(y).exp_()
        values.append((values[0] - gaussian).mul_(half_inverse))
        for n in range(1, highest):
            values.append((values[n] * (2 * n + 1)).sub_(gaussian).mul_(half_inverse))
    return values


def _tabulate(squared_distance: Tensor, exponent: Tensor, highest: int) -> list[Tensor]:
    """B_0 … B_highest, without a graph."""
    # A plain layout: the values of close pairs are written through flat views.
    y = squared_distance.contiguous() * exponent**2
    limit = series_limit(highest)
    near = y < limit
    values = _boys_far(y.clamp(min=limit), highest)
    if y.device.type == "cpu":
        # Few pairs are that close: on the CPU, where it costs no synchronization, only those take the series.
        where = near.reshape(-1).nonzero().squeeze(1)
        if len(where):
            close = _boys_near(y.reshape(-1)[where], highest)
            for value, replacement in zip(values, close, strict=True):
                value.reshape(-1).index_copy_(0, where, replacement)
    else:
        close = _boys_near(y.clamp(max=limit), highest)
        values = [torch.where(near, inner, outer) for inner, outer in zip(close, values, strict=True)]
    factor = exponent * (2.0 / math.sqrt(math.pi))
    for value in values:
        value.mul_(factor)
        factor = factor * (2.0 * exponent**2)
    return values


class _Table:
    """The kernels of one set of pairs, extended when a higher derivative asks for more."""

    def __init__(self, squared_distance: Tensor, exponent: Tensor, highest: int) -> None:
        self._squared_distance = squared_distance.detach()
        self._exponent = exponent.detach()
        self._values = _tabulate(self._squared_distance, self._exponent, highest)

    def rows(self, low: int, high: int) -> tuple[Tensor, ...]:
        if high >= len(self._values):
            self._values = _tabulate(self._squared_distance, self._exponent, high + _ORDERS_IN_RESERVE)
        # detach() makes new tensors of the same storage: autograd marks what it is given as outputs, and the table must
        # not come to own the graph that owns the table.
        return tuple(value.detach() for value in self._values[low : high + 1])


class _Kernels(torch.autograd.Function):
    """B_low … B_high of a table: dB_n/dx = −½ B_{n+1}, so a backward pass reads the next rows."""

    @staticmethod
    def forward(ctx, squared_distance, table, low, high):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(squared_distance)
        ctx.table, ctx.low, ctx.high = table, low, high
        return table.rows(low, high)

    @staticmethod
    def backward(ctx, *gradients):  # type: ignore[no-untyped-def]
        (squared_distance,) = ctx.saved_tensors
        given = [n for n, gradient in enumerate(gradients) if gradient is not None]
        if not given:
            return None, None, None, None
        low, high = ctx.low + given[0] + 1, ctx.low + given[-1] + 1
        rows = _Kernels.apply(squared_distance, ctx.table, low, high)
        products = [gradients[n] * rows[n - given[0]] for n in given]
        return -0.5 * sum(products[1:], start=products[0]), None, None, None


def _kernels_save(ctx, inputs, output):  # type: ignore[no-untyped-def]
    squared_distance, exponent, ctx.low, ctx.high = inputs
    ctx.save_for_backward(squared_distance, exponent)


def _kernels_backward(ctx, gradient):  # type: ignore[no-untyped-def]
    rows = _kernels_operator(*ctx.saved_tensors, ctx.low + 1, ctx.high + 1)
    return -0.5 * (gradient * rows).sum(0), None, None, None


_kernels_operator = operator(
    "gaussian_kernels(Tensor squared_distance, Tensor exponent, int low, int high) -> Tensor",
    lambda squared_distance, exponent, low, high: torch.stack(_tabulate(squared_distance, exponent, high)[low:]),
    shapes=lambda squared_distance, exponent, low, high: squared_distance.new_empty(
        (high - low + 1, *squared_distance.shape)
    ),
    save=_kernels_save,
    backward=_kernels_backward,
)


def gaussian_kernels(squared_distance: Tensor, exponent: Tensor, highest: int) -> tuple[Tensor, ...]:
    """B_0 … B_highest at squared distances, differentiable to any order in the squared distance.

    Parameters
    ----------
    squared_distance
        x = r² (Å²), any shape; zero is allowed.
    exponent
        a = 1/(√2 σ) (1/Å), broadcastable to the shape of ``squared_distance``. No gradient in it.
    highest
        Highest order n.

    Returns
    -------
    tuple of Tensor
        B_n (Å^{−2n−1}), each of the shape of ``squared_distance``.
    """
    if is_traced(squared_distance):
        return _kernels_operator(squared_distance, exponent, 0, highest).unbind(0)
    reserve = _ORDERS_IN_RESERVE if squared_distance.requires_grad and torch.is_grad_enabled() else 0
    table = _Table(squared_distance, exponent, highest + reserve)
    return _Kernels.apply(squared_distance, table, 0, highest)
