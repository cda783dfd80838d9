r"""Compiled kernels that spread multipoles over a mesh with cardinal B-splines and gather what the mesh holds.

An atom at mesh coordinates u touches the order³ points below it with the weights ∂ᵃM(u₁−g₁) ∂ᵇM(u₂−g₂) ∂ᶜM(u₃−g₃), M
the cardinal B-spline of the order. A row of these points is one vector of the processor, and so are the weights of an
axis, which are polynomials in u − ⌊u⌋ whose coefficients are kept. The compiler does not find these vectors in plain
loops, as it cannot know that mesh and weights share no memory. So the innermost functions are written in its own
language, LLVM's; their arrays are contiguous, and their ``width`` and ``number`` are constants.

Kernels are compiled by numba for one order, degree and dtype when first used and kept on disk for later processes. They
run without the interpreter's lock on threads of our own (`farfield.electrostatics.spreading`): numba's own threading
layers do not survive forked data-loader workers or two Python threads.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from farfield.electrostatics.spreading import MULTI_INDICES


def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function, without the run-time checks of shapes that tests wrap around everything."""
    plain = inspect.unwrap(function)
    try:
        return numba.njit(nogil=True, fastmath=True, cache=True)(plain)
    except RuntimeError:  # nowhere to keep them: neither the package nor the home directory can be written to
        return numba.njit(nogil=True, fastmath=True)(plain)


#: Decorates what writes LLVM's instructions for a call; constants among its arguments are known to it.
_written_out: Any = intrinsic(prefer_literal=True)


class _Vectors:
    """Instructions on vectors of ``width`` numbers in memory, in the function that is being compiled."""

    def __init__(self, context: Any, builder: Any, kind: types.Array, width: int) -> None:
        self._context, self._builder = context, builder
        self._width, self._number = width, context.get_value_type(kind.dtype)
        self._align = self._number.get_abi_size(context.target_data)

    def start(self, kind: types.Array, array: Any, *at: Any) -> Any:
        """Pointer to the first number of an array, or to the one at some place."""
        pointer = self._context.make_array(kind)(self._context, self._builder, array).data
        return self._builder.gep(pointer, list(at)) if at else pointer

    def after(self, pointer: Any, vectors: int) -> Any:
        return self._builder.gep(pointer, [ir.Constant(ir.IntType(64), vectors * self._width)])

    def _of_vector(self, pointer: Any) -> Any:
        return self._builder.bitcast(pointer, ir.VectorType(self._number, self._width).as_pointer())

    def load(self, pointer: Any) -> Any:
        return self._builder.load(self._of_vector(pointer), align=self._align)

    def store(self, value: Any, pointer: Any) -> None:
        self._builder.store(value, self._of_vector(pointer), align=self._align)

    def number(self, pointer: Any, place: int) -> Any:
        return self._builder.load(self._builder.gep(pointer, [ir.Constant(ir.IntType(64), place)]))

    def everywhere(self, number: Any) -> Any:
        """Vector of one number."""
        undefined = ir.Constant(ir.VectorType(self._number, self._width), ir.Undefined)
        first = self._builder.insert_element(undefined, number, ir.Constant(ir.IntType(32), 0))
        return self._builder.shuffle_vector(
            first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), self._width), None)
        )

    def add(self, total: Any, one: Any, other: Any) -> Any:
        """``total`` (None for zero) plus the product of two vectors."""
        product = self._builder.fmul(one, other, flags=("fast",))
        return product if total is None else self._builder.fadd(total, product, flags=("fast",))

    def add_product(self, total: Any, pointer: Any, place: int, vector: Any) -> Any:
        """``total`` plus the product of a vector and the number at some place after a pointer."""
        return self.add(total, self.everywhere(self.number(pointer, place)), vector)


@_written_out
def _weigh(typing, width, number, weights, x, table):  # type: ignore[no-untyped-def]
    """weights[d] = Σ_n table[d, n] (x − ½)ⁿ, n < width, d < number."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        p, half = width.literal_value, ir.Constant(context.get_value_type(table.dtype), 0.5)
        vectors = _Vectors(context, builder, table, p)
        target, rows = vectors.start(weights, arguments[2]), vectors.start(table, arguments[4])
        power = vectors.everywhere(builder.fsub(arguments[3], half))
        for d in range(number.literal_value):
            total = vectors.load(vectors.after(rows, d * p + p - 1))
            for n in range(p - 2, -1, -1):
                total = vectors.add(vectors.load(vectors.after(rows, d * p + n)), total, power)
            vectors.store(total, vectors.after(target, d))
        return context.get_dummy_value()

    return types.void(width, number, weights, table.dtype, table), generate


@_written_out
def _combine(typing, width, number, target, at, coefficients, source):  # type: ignore[no-untyped-def]
    """target[at : at + width] = Σ_z coefficients[z] source[z], z < number."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        vectors = _Vectors(context, builder, target, width.literal_value)
        place = vectors.start(target, arguments[2], arguments[3])
        scales, rows = vectors.start(coefficients, arguments[4]), vectors.start(source, arguments[5])
        total = None
        for z in range(number.literal_value):
            total = vectors.add_product(total, scales, z, vectors.load(vectors.after(rows, z)))
        vectors.store(total, place)
        return context.get_dummy_value()

    return types.void(width, number, target, types.int64, coefficients, source), generate


@_written_out
def _spread_plane(typing, width, number, block, first, second, target, starts):  # type: ignore[no-untyped-def]
    """target[starts[j] : starts[j] + width] += Σ_y second[y, j] Σ_x first[x] block[y, x], x + y < number, j < width."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        p, top = width.literal_value, number.literal_value
        vectors = _Vectors(context, builder, block, p)
        parts, scales = vectors.start(block, arguments[2]), vectors.start(first, arguments[3])
        weights, places = vectors.start(second, arguments[4]), vectors.start(starts, arguments[6])
        rows: list[Any] = [None] * top
        for y in range(top):
            for x in range(top - y):
                part = vectors.load(vectors.after(parts, y * top + x))
                rows[y] = vectors.add_product(rows[y], scales, x, part)
        for j in range(p):
            place = vectors.start(target, arguments[5], vectors.number(places, j))
            total = vectors.load(place)
            for y in range(top):
                total = vectors.add_product(total, weights, y * p + j, rows[y])
            vectors.store(total, place)
        return context.get_dummy_value()

    return types.void(width, number, block, first, second, target, starts), generate


@_written_out
def _gather_plane(typing, width, number, block, first, second, source, starts):  # type: ignore[no-untyped-def]
    """block[y, x] += first[x] Σ_j second[y, j] source[starts[j] : starts[j] + width], x + y < number, j < width."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        p, top = width.literal_value, number.literal_value
        vectors = _Vectors(context, builder, block, p)
        sums, scales = vectors.start(block, arguments[2]), vectors.start(first, arguments[3])
        weights, places = vectors.start(second, arguments[4]), vectors.start(starts, arguments[6])
        rows: list[Any] = [None] * top
        for j in range(p):
            row = vectors.load(vectors.start(source, arguments[5], vectors.number(places, j)))
            for y in range(top):
                rows[y] = vectors.add_product(rows[y], weights, y * p + j, row)
        for y in range(top):
            for x in range(top - y):
                place = vectors.after(sums, y * top + x)
                vectors.store(vectors.add_product(vectors.load(place), scales, x, rows[y]), place)
        return context.get_dummy_value()

    return types.void(width, number, block, first, second, source, starts), generate


@functools.cache
def spline_polynomials(order: int, degree: int, dtype: str = "float64") -> np.ndarray:
    """Coefficients of the splines and their derivatives: M⁽ᵈ⁾(x + order − 1 − j) = Σ_n C[d, n, j] (x − ½)ⁿ.

    Parameters
    ----------
    order
        Of the splines.
    degree
        Highest derivative.
    dtype
        Of the result.

    Returns
    -------
    np.ndarray
        Shape (degree + 1, order, order); j runs along the last axis.
    """
    # M_p(t) = Σ_i (−1)^i binom(p, i) max(t − i, 0)^{p−1}/(p − 1)!, in powers of s = x − ½ where t = s + ½ + place.
    table = np.zeros((degree + 1, order, order))
    for j in range(order):
        place = order - 1 - j
        for n in range(order):
            # integers up to the last division: 2^{p−1−n} times the coefficient times (p − 1)!
            total = sum(
                (-1) ** i * math.comb(order, i) * math.comb(order - 1, n) * (2 * (place - i) + 1) ** (order - 1 - n)
                for i in range(place + 1)
            )
            coefficient = total / (2 ** (order - 1 - n) * math.factorial(order - 1))
            for d in range(min(n, degree) + 1):
                table[d, n - d, j] = coefficient * math.perm(n, d)
    return table.astype(dtype)


@compiled
def _first(u, n, width):  # type: ignore[no-untyped-def]
    """Find u − ⌊u⌋, and the first of the points that an atom touches along an axis of n points."""
    floor = np.floor(u)
    return u - floor, (int(floor) - width + 1) % n


@compiled
def _fill_points(first, n, points):  # type: ignore[no-untyped-def]
    """Set the points that follow the first along an axis of n points."""
    point = first
    for i in range(len(points)):
        points[i] = point
        point += 1
        if point == n:
            point = 0


@compiled
def _shift(weights, by, shifted):  # type: ignore[no-untyped-def]
    """Set weights (derivatives, points) moved along the points, with zeros for those moved in."""
    width = weights.shape[1]
    for d in range(weights.shape[0]):
        for k in range(width):
            shifted[d, k] = weights[d, k - by] if 0 <= k - by < width else 0.0


@functools.cache
def kernels(order: int, degree: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Make the kernels for one order of splines and all derivatives up to a degree.

    Returns
    -------
    tuple
        ``spread(u, coefficients, atoms, mesh, table)`` adds to ``mesh`` what ``atoms`` (indices) put there,
        ``gather(u, mesh, atoms, out, table)`` sets their rows of ``out``. Arrays, contiguous: u (atoms, 3) float64,
        coefficients and out (atoms, derivatives), mesh (n₁, n₂, n₃ ≥ order), table what `spline_polynomials` gives in
        the dtype of the mesh.
    """
    p, top = order, degree + 1
    lookup = np.array(
        [
            MULTI_INDICES.index(index) if sum(index) <= degree else -1
            for index in itertools.product(range(top), repeat=3)
        ],
        dtype=np.int64,
    ).reshape(top, top, top)

    @compiled
    def spread(u, coefficients, atoms, mesh, table):  # type: ignore[no-untyped-def]
        n1, n2, n3 = mesh.shape
        flat = mesh.reshape(-1)
        w1, w2, w3 = (np.zeros((top, p), mesh.dtype), np.zeros((top, p), mesh.dtype), np.zeros((top, p), mesh.dtype))
        whole = np.zeros((top, p), mesh.dtype)
        g1, g2, starts = np.zeros(p, np.int64), np.zeros(p, np.int64), np.zeros(p, np.int64)
        scales = np.zeros(top, mesh.dtype)
        # rows of points by derivatives along the second and first axis, the third folded in
        block = np.zeros(top * top * p, mesh.dtype)
        for atom in atoms:
            x1, first1 = _first(u[atom, 0], n1, p)
            x2, first2 = _first(u[atom, 1], n2, p)
            x3, first3 = _first(u[atom, 2], n3, p)
            _weigh(p, top, w1, x1, table)
            _weigh(p, top, w2, x2, table)
            _weigh(p, top, w3, x3, table)
            _fill_points(first1, n1, g1)
            _fill_points(first2, n2, g2)
            # Where a row of points goes on at the other end, it is two rows of the full width with zeros among weights.
            beyond = max(first3 + p - n3, 0)
            if beyond:
                whole[:] = w3
            for piece in range(2 if beyond else 1):
                if beyond:
                    _shift(whole, beyond - piece * p, w3)
                g3 = 0 if piece else first3 - beyond
                for y in range(top):
                    for x in range(top - y):
                        for z in range(top):
                            scales[z] = coefficients[atom, lookup[x, y, z]] if z < top - x - y else 0.0
                        _combine(p, top, block, (y * top + x) * p, scales, w3)
                for i in range(p):
                    for j in range(p):
                        starts[j] = (g1[i] * n2 + g2[j]) * n3 + g3
                    for x in range(top):
                        scales[x] = w1[x, i]
                    _spread_plane(p, top, block, scales, w2, flat, starts)

    @compiled
    def gather(u, mesh, atoms, out, table):  # type: ignore[no-untyped-def]
        n1, n2, n3 = mesh.shape
        flat = mesh.reshape(-1)
        w1, w2, w3 = (np.zeros((top, p), mesh.dtype), np.zeros((top, p), mesh.dtype), np.zeros((top, p), mesh.dtype))
        whole = np.zeros((top, p), mesh.dtype)
        g1, g2, starts = np.zeros(p, np.int64), np.zeros(p, np.int64), np.zeros(p, np.int64)
        scales = np.zeros(top, mesh.dtype)
        # sums over planes and rows, by derivatives along the second and first axis
        block = np.zeros((top, top, p), mesh.dtype)
        for atom in atoms:
            x1, first1 = _first(u[atom, 0], n1, p)
            x2, first2 = _first(u[atom, 1], n2, p)
            x3, first3 = _first(u[atom, 2], n3, p)
            _weigh(p, top, w1, x1, table)
            _weigh(p, top, w2, x2, table)
            _weigh(p, top, w3, x3, table)
            _fill_points(first1, n1, g1)
            _fill_points(first2, n2, g2)
            out[atom] = 0.0
            beyond = max(first3 + p - n3, 0)
            if beyond:
                whole[:] = w3
            for piece in range(2 if beyond else 1):
                if beyond:
                    _shift(whole, beyond - piece * p, w3)
                g3 = 0 if piece else first3 - beyond
                block[:] = 0.0
                for i in range(p):
                    for j in range(p):
                        starts[j] = (g1[i] * n2 + g2[j]) * n3 + g3
                    for x in range(top):
                        scales[x] = w1[x, i]
                    _gather_plane(p, top, block, scales, w2, flat, starts)
                for y in range(top):
                    for x in range(top - y):
                        for z in range(top - y - x):
                            total = block[y, x, 0] * w3[z, 0]
                            for k in range(1, p):
                                total += block[y, x, k] * w3[z, k]
                            out[atom, lookup[x, y, z]] += total

    return spread, gather
