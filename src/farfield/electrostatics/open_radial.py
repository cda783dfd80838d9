"""The radial kernels of Gaussian multipoles as instructions without branches, to be compiled into a loop over pairs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import llvmlite.ir as ir
import numba
import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic
from scipy.special import erfcx

from farfield.electrostatics.compiled import compiled
from farfield.electrostatics.kernels import series_terms

#: erfc is represented in t = (x − 3)/(x + 3) from here on.
_LEAST_ARGUMENT = 0.3

#: Called inside compiled functions, with other arguments than it is defined with.
_instruction: Callable[..., Any] = intrinsic


@_instruction
def _like(typingctx, value, other):  # type: ignore[no-untyped-def]
    """Constant of the type of another number: numba would calculate with Python's numbers in float64."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return context.cast(builder, arguments[0], value, other)

    return other(value, other), generate


@_instruction
def _polynomial(typingctx, x, coefficients):  # type: ignore[no-untyped-def]
    """Σ_k coefficients[k] xᵏ, written out: a loop in here would keep the loop around it from being vectorized."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        values = [
            context.cast(builder, value, coefficients.dtype, x) for value in cgutils.unpack_tuple(builder, arguments[1])
        ]
        total = values[-1]
        for value in values[-2::-1]:
            total = builder.fadd(builder.fmul(total, arguments[0], flags=("fast",)), value, flags=("fast",))
        return total

    return x(x, coefficients), generate


@_instruction
def _power_of_two(typingctx, exponent, other):  # type: ignore[no-untyped-def]
    """2ⁿ of an int32 n, by its bits, in the type of another number."""
    bits, bias, place = (64, 1023, 52) if other == numba.float64 else (32, 127, 23)

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        integer = ir.IntType(bits)
        number = arguments[0] if bits == 32 else builder.sext(arguments[0], integer)
        number = builder.shl(builder.add(number, integer(bias)), integer(place))
        return builder.bitcast(number, context.get_value_type(other))

    return other(numba.int32, other), generate


@functools.cache
def tables(highest: int, dtype: np.dtype) -> tuple[tuple[float, ...], ...]:
    """Find the coefficients of F_highest eʸ in 2y, of (1 + 2x) eˣˣ erfc(x) in t = (x − 3)/(x + 3), and of eˣ in x."""
    epsilon = float(np.finfo(dtype).eps)
    near = 1.0 / np.cumprod([2.0 * highest + 2 * j + 1 for j in range(series_terms(highest, epsilon) + 1)])

    def scaled(t: np.ndarray) -> np.ndarray:
        x = 3.0 * (1.0 + t) / np.maximum(1.0 - t, 1e-300)
        return np.where(t < 1.0, (1.0 + 2.0 * x) * erfcx(x), 2.0 / math.sqrt(math.pi))

    start = (_LEAST_ARGUMENT - 3.0) / (_LEAST_ARGUMENT + 3.0)
    degree, order = (22, 13) if dtype == np.float64 else (12, 7)
    fit = np.polynomial.Chebyshev.interpolate(scaled, degree, [start, 1.0])
    far = fit.convert(kind=np.polynomial.Polynomial, domain=[-1.0, 1.0], window=[-1.0, 1.0]).coef
    exponential = [1.0 / math.factorial(k) for k in range(order + 1)]
    return tuple(near.tolist()), tuple(far.tolist()), tuple(exponential)


@functools.partial(compiled, inlined=True)
def radial(squared, absent, highest, limit, near, far, exponential):  # type: ignore[no-untyped-def]
    """F_0 … F_6 at y = R²/2, of which those beyond the highest mean nothing; zero where a pair is ``absent``, at R = 0.

    As `farfield.electrostatics.kernels` finds them, but that each pair takes both ways and then chooses. ``limit`` is
    where, in R², and the others are `tables`.
    """
    one, half = _like(1.0, squared), _like(0.5, squared)
    limit = _like(limit, squared)
    # e^{−y} = 2⁻ⁿ e^r
    bounded = min(squared, _like(160.0, squared))
    n = np.floor(bounded * _like(0.5 / math.log(2.0), squared) + half)
    e = _polynomial(n * _like(math.log(2.0), squared) - half * bounded, exponential)
    e = e * _power_of_two(-np.int32(n), squared)
    if absent:  # at R = 0, where all comes from the series
        e = _like(0.0, squared)
    top = _polynomial(squared, near) * e
    g6 = top
    g5 = (squared * g6 + e) * _like(1.0 / 11.0, squared) if highest > 5 else top
    g4 = (squared * g5 + e) * _like(1.0 / 9.0, squared) if highest > 4 else top
    g3 = (squared * g4 + e) * _like(1.0 / 7.0, squared) if highest > 3 else top
    g2 = (squared * g3 + e) * _like(1.0 / 5.0, squared) if highest > 2 else top
    g1 = (squared * g2 + e) * _like(1.0 / 3.0, squared) if highest > 1 else top
    g0 = squared * g1 + e if highest > 0 else top
    distant = max(squared, limit)
    inverse, length = one / distant, np.sqrt(distant)
    x, three = length * _like(math.sqrt(0.5), squared), _like(3.0, squared)
    tail = e * _polynomial((x - three) / (x + three), far) / (one + x + x)
    h0 = _like(math.sqrt(0.5 * math.pi), squared) * length * inverse * (one - tail)
    h1 = (h0 - e) * inverse
    h2 = (three * h1 - e) * inverse
    h3 = (_like(5.0, squared) * h2 - e) * inverse
    h4 = (_like(7.0, squared) * h3 - e) * inverse
    h5 = (_like(9.0, squared) * h4 - e) * inverse
    h6 = (_like(11.0, squared) * h5 - e) * inverse
    if squared < limit:
        h0, h1, h2, h3, h4, h5, h6 = g0, g1, g2, g3, g4, g5, g6
    return h0, h1, h2, h3, h4, h5, h6
