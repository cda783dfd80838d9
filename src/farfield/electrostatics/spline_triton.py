r"""Triton kernels that spread multipoles over a mesh and gather what it holds, for GPUs.

As the kernels for CPUs (`farfield.electrostatics.spline_kernels`): an atom at mesh coordinates u touches the order³
points below it with the weights ∂ᵃM(u₁−g₁) ∂ᵇM(u₂−g₂) ∂ᶜM(u₃−g₃). One warp works on a few atoms, its threads on the
(second, third) axes of their stencils, whose weights stay in registers; the first axis is a loop. Along the third axis
threads are neighbours in memory, so that their additions to the mesh are merged.

Between two points of the mesh a spline is a polynomial: its coefficients about the middle are a small table, and a
weight is a few multiplications, for every point of the stencil at once.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from fractions import Fraction
from math import factorial
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from farfield.electrostatics.graphs import constant

#: Threads along the second and third axes of a stencil, a power of two: orders of splines up to this.
_LANES = 8

#: Planes of a stencil whose work is interleaved.
_UNROLL = 2

#: Atoms that a warp works on at a time. Gathering a potential and its gradient for four takes 9 % (float64) to 22 %
#: (float32) less time than for two, at 10⁶ atoms on an H100; spreading takes the same. Sums of higher derivatives of
#: four atoms would fill a thread's registers.
_ATOMS = 2
_ATOMS_OF_FEW_DERIVATIVES = 4

#: Arguments whose values are no reason to compile anew.
_SIZES = ["atoms", "n1", "n2", "n3"]


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile a function, without the run-time checks of shapes that tests wrap around everything."""
    return triton.jit(inspect.unwrap(function))


def _kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel once for meshes and numbers of atoms of any size."""
    return triton.jit(inspect.unwrap(function), do_not_specialize=_SIZES)


@functools.cache
def spline_polynomials(order: int, degree: int) -> tuple[float, ...]:
    """Coefficients of M⁽ᵈ⁾(x + order − 1 − j) in powers of x − ½, 0 ≤ x < 1: flat, by d, j and power."""
    half = Fraction(1, 2)
    pieces = [[Fraction(1)]]
    for m in range(2, order + 1):
        new = []
        for n in range(m):
            # M_m(x + n) = [(x + n) M_{m−1}(x + n) + (m − x − n) M_{m−1}(x + n − 1)]/(m − 1)
            sums = [Fraction(0)] * m
            for piece, constant_part, slope in (
                (pieces[n] if n < m - 1 else [], half + n, 1),
                (pieces[n - 1] if n > 0 else [], m - half - n, -1),
            ):
                for power, value in enumerate(piece):
                    sums[power] += constant_part * value / (m - 1)
                    sums[power + 1] += slope * value / (m - 1)
            new.append(sums)
        pieces = new
    table: list[float] = []
    for d in range(degree + 1):
        for j in range(order):
            piece = pieces[order - 1 - j]
            derived = [
                value * Fraction(factorial(power), factorial(power - d))
                for power, value in enumerate(piece)
                if power >= d
            ]
            table.extend(float(value) for value in derived + [Fraction(0)] * d)
    return tuple(table)


@_compiled
def _weights(table, d: tl.constexpr, j, x, ORDER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Weights of the points j of a stencil in the d-th derivative, x from the middle between two points."""
    row = table + (d * ORDER + j) * ORDER
    value = tl.load(row + (ORDER - 1 - d)) + 0.0 * x
    for power in tl.static_range(ORDER - 2 - d, -1, -1):
        value = value * x + tl.load(row + power)
    return value


@_compiled
def _wrapped(floor, j, points, ORDER: tl.constexpr):  # type: ignore[no-untyped-def]
    """Index of the point j of a stencil along an axis with so many points."""
    return ((floor - (ORDER - 1) + j) % points + points) % points


@_compiled
def _place(u, places, atoms, ATOMS: tl.constexpr, SORTED: tl.constexpr):  # type: ignore[no-untyped-def]
    """Atoms of this program, whether there are so many, and their coordinates."""
    row = tl.program_id(0) * ATOMS + tl.arange(0, ATOMS)
    real = row < atoms
    if SORTED:  # noqa: SIM108  (no load of what is not given)
        atom = tl.load(places + row, mask=real, other=0)
    else:
        atom = tl.where(real, row, 0).to(tl.int64)
    return atom, real, tl.load(u + 3 * atom), tl.load(u + 3 * atom + 1), tl.load(u + 3 * atom + 2)


@_kernel
def _spread_kernel(  # type: ignore[no-untyped-def]
    u,
    coefficients,
    places,
    mesh,
    table,
    atoms,
    n1,
    n2,
    n3,
    ORDER: tl.constexpr,
    DEGREE: tl.constexpr,
    COUNT: tl.constexpr,
    LANES: tl.constexpr,
    ATOMS: tl.constexpr,
    SORTED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    dtype = mesh.dtype.element_ty
    atom, real, u1, u2, u3 = _place(u, places, atoms, ATOMS, SORTED)
    f1, f2, f3 = tl.floor(u1), tl.floor(u2), tl.floor(u3)
    x1, x2, x3 = (u1 - f1 - 0.5).to(dtype), (u2 - f2 - 0.5).to(dtype)[:, None], (u3 - f3 - 0.5).to(dtype)[:, None]
    lane = tl.arange(0, LANES * LANES)[None, :]
    j, k = tl.minimum(lane // LANES, ORDER - 1), tl.minimum(lane % LANES, ORDER - 1)
    used = real[:, None] & (lane // LANES < ORDER) & (lane % LANES < ORDER)
    g2 = _wrapped(f2.to(tl.int32)[:, None], j, n2, ORDER)
    g3 = _wrapped(f3.to(tl.int32)[:, None], k, n3, ORDER)
    inside = g2 * n3 + g3
    # What goes to each point, by derivatives along the first axis.
    w2 = ()
    w3 = ()
    sums = ()
    for d in tl.static_range(DEGREE + 1):
        w2 = w2 + (_weights(table, d, j, x2, ORDER),)
        w3 = w3 + (_weights(table, d, k, x3, ORDER),)
    for a in tl.static_range(DEGREE + 1):
        total = tl.zeros((ATOMS, LANES * LANES), dtype)
        for b in tl.static_range(DEGREE + 1 - a):
            for c in tl.static_range(DEGREE + 1 - a - b):
                # the place of (a, b, c) among the derivatives: all of lower degree, then by falling a and b
                place = (a + b + c) * (a + b + c + 1) * (a + b + c + 2) // 6 + (b + c) * (b + c + 1) // 2 + c
                coefficient = tl.load(coefficients + atom * COUNT + place)
                total += coefficient[:, None] * (w2[b] * w3[c])
        sums = sums + (total,)
    for i in tl.range(0, ORDER, loop_unroll_factor=UNROLL):
        value = _weights(table, 0, i, x1, ORDER)[:, None] * sums[0]
        for a in tl.static_range(1, DEGREE + 1):
            value += _weights(table, a, i, x1, ORDER)[:, None] * sums[a]
        g1 = _wrapped(f1.to(tl.int32), i, n1, ORDER)
        tl.atomic_add(mesh + (g1[:, None] * (n2 * n3) + inside), value, mask=used, sem="relaxed")


@_kernel
def _gather_kernel(  # type: ignore[no-untyped-def]
    u,
    mesh,
    places,
    out,
    table,
    atoms,
    n1,
    n2,
    n3,
    ORDER: tl.constexpr,
    DEGREE: tl.constexpr,
    COUNT: tl.constexpr,
    LANES: tl.constexpr,
    ATOMS: tl.constexpr,
    SORTED: tl.constexpr,
    UNROLL: tl.constexpr,
):
    dtype = mesh.dtype.element_ty
    atom, real, u1, u2, u3 = _place(u, places, atoms, ATOMS, SORTED)
    f1, f2, f3 = tl.floor(u1), tl.floor(u2), tl.floor(u3)
    x1, x2, x3 = (u1 - f1 - 0.5).to(dtype), (u2 - f2 - 0.5).to(dtype)[:, None], (u3 - f3 - 0.5).to(dtype)[:, None]
    lane = tl.arange(0, LANES * LANES)[None, :]
    j, k = tl.minimum(lane // LANES, ORDER - 1), tl.minimum(lane % LANES, ORDER - 1)
    used = real[:, None] & (lane // LANES < ORDER) & (lane % LANES < ORDER)
    g2 = _wrapped(f2.to(tl.int32)[:, None], j, n2, ORDER)
    g3 = _wrapped(f3.to(tl.int32)[:, None], k, n3, ORDER)
    inside = g2 * n3 + g3
    # Sums along the first axis, by derivatives along it.
    sums = ()
    for _ in tl.static_range(DEGREE + 1):
        sums = sums + (tl.zeros((ATOMS, LANES * LANES), dtype),)
    for i in tl.range(0, ORDER, loop_unroll_factor=UNROLL):
        g1 = _wrapped(f1.to(tl.int32), i, n1, ORDER)
        value = tl.load(mesh + (g1[:, None] * (n2 * n3) + inside), mask=used, other=0.0)
        raised = ()
        for a in tl.static_range(DEGREE + 1):
            raised = raised + (sums[a] + _weights(table, a, i, x1, ORDER)[:, None] * value,)
        sums = raised
    w3 = ()
    for c in tl.static_range(DEGREE + 1):
        w3 = w3 + (_weights(table, c, k, x3, ORDER),)
    for b in tl.static_range(DEGREE + 1):
        w2 = _weights(table, b, j, x2, ORDER)
        for c in tl.static_range(DEGREE + 1 - b):
            weight = w2 * w3[c]
            for a in tl.static_range(DEGREE + 1 - b - c):
                place = (a + b + c) * (a + b + c + 1) * (a + b + c + 2) // 6 + (b + c) * (b + c + 1) // 2 + c
                tl.store(out + atom * COUNT + place, tl.sum(sums[a] * weight, axis=1), mask=real)


def _launch(
    kernel: Any,
    u: Tensor,
    given: Tensor,
    places: Tensor | None,
    made: Tensor,
    mesh: Tensor,
    order: int,
    degree: int,
    per_warp: int,
) -> None:
    """Run a kernel that makes ``made`` of ``given``, one of which is the mesh."""
    if order > _LANES:
        raise ValueError(f"splines of order {order} are asked for but the kernels for GPUs go up to {_LANES}")
    atoms, (n1, n2, n3) = len(u), mesh.shape
    if not atoms:
        return
    table = constant(spline_polynomials(order, degree), mesh)
    options = {
        "ORDER": order,
        "DEGREE": degree,
        "COUNT": (degree + 1) * (degree + 2) * (degree + 3) // 6,
        "LANES": _LANES,
        "ATOMS": per_warp,
        "SORTED": places is not None,
        "UNROLL": _UNROLL,
        "num_warps": 1,
    }
    with torch.cuda.device_of(mesh):
        kernel[(triton.cdiv(atoms, per_warp),)](u, given, places, made, table, atoms, n1, n2, n3, **options)


def spread(u: Tensor, coefficients: Tensor, places: Tensor | None, mesh: Tensor, order: int, degree: int) -> None:
    """Add to ``mesh`` what atoms at u (atoms, 3), float64, put there: coefficients (atoms, derivatives).

    ``places`` is the order in which atoms are worked on, shape (atoms,); None for the order they stand in.
    """
    u, coefficients = u.detach().contiguous(), coefficients.detach().contiguous()
    _launch(_spread_kernel, u, coefficients, places, mesh, mesh, order, degree, _ATOMS)


def gather(u: Tensor, mesh: Tensor, places: Tensor | None, out: Tensor, order: int, degree: int) -> None:
    """Set ``out`` (atoms, derivatives) to the derivatives of what the mesh holds at u (atoms, 3), float64."""
    u, mesh = u.detach().contiguous(), mesh.detach().contiguous()
    per_warp = _ATOMS if degree > 1 else _ATOMS_OF_FEW_DERIVATIVES
    _launch(_gather_kernel, u, mesh, places, out, mesh, order, degree, per_warp)
