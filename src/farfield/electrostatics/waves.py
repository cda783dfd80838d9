r"""Tables of cos 2πhs and sin 2πhs along one axis, with their derivatives in the fractional coordinate s.

The table of level l holds dˡ/dsˡ of (cos 2πhs, sin 2πhs) for h = 0 … n. Its derivative is the table of level l + 1, and
all levels are cosines and sines times a power of 2πh: they are computed once, however often autograd comes back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class _Table:
    """Cosines and sines of one set of coordinates, and the levels made of them so far."""

    def __init__(self, fractional: Tensor, highest: int, dtype: torch.dtype) -> None:
        frequencies = torch.arange(highest + 1, dtype=fractional.dtype, device=fractional.device) * (2.0 * math.pi)
        angle = fractional.detach()[..., None] * frequencies
        self._cosine, self._sine = torch.cos(angle).to(dtype), torch.sin(angle).to(dtype)
        twice = torch.cat((frequencies, frequencies))
        self._frequencies, self._minus_squares = twice.to(dtype), -(twice**2).to(dtype)
        self._levels: list[Tensor] = []

    def rows(self, low: int, high: int) -> tuple[Tensor, ...]:
        """Tables of the levels low … high."""
        while len(self._levels) <= high:
            if not self._levels:
                table = torch.cat((self._cosine, self._sine), -1)
            elif len(self._levels) == 1:
                table = torch.cat((-self._sine, self._cosine), -1) * self._frequencies
            else:
                table = self._levels[-2] * self._minus_squares
            self._levels.append(table)
        # New tensors of the same storage: see farfield.electrostatics.kernels.
        return tuple(table.detach() for table in self._levels[low : high + 1])


class _Waves(torch.autograd.Function):
    @staticmethod
    def forward(ctx, fractional, table, low, high):  # type: ignore[no-untyped-def]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(fractional)
        ctx.table, ctx.low = table, low
        return table.rows(low, high)

    @staticmethod
    def backward(ctx, *gradients):  # type: ignore[no-untyped-def]
        (fractional,) = ctx.saved_tensors
        given = [level for level, gradient in enumerate(gradients) if gradient is not None]
        if not given:
            return None, None, None, None
        rows = _Waves.apply(fractional, ctx.table, ctx.low + given[0] + 1, ctx.low + given[-1] + 1)
        products = [gradients[level] * rows[level - given[0]] for level in given]
        return sum(products[1:], start=products[0]).sum(-1).to(fractional.dtype), None, None, None


def wave_tables(fractional: Tensor, highest: int, levels: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Tables of the waves along one axis and of their derivatives.

    Parameters
    ----------
    fractional
        Fractional coordinates s, float64, shape (members, slots). Phases are taken in float64: in a long cell they are
        many turns, which float32 would blur.
    highest
        Largest index h = n.
    levels
        How many tables: 1 for the waves, 2 with the first, 3 with the second derivatives.
    dtype
        Of the tables.

    Returns
    -------
    tuple of Tensor
        ``levels`` tables of shape (members, slots, 2(n + 1)), cosines first, differentiable to any order.
    """
    return _Waves.apply(fractional, _Table(fractional, highest, dtype), 0, levels - 1)
