r"""Compiled kernels that spread multipoles over a mesh with cardinal B-splines and gather what the mesh holds.

An atom at mesh coordinates u touches the order³ points below it with the weights ∂ᵃM(u₁−g₁) ∂ᵇM(u₂−g₂) ∂ᶜM(u₃−g₃), M
the cardinal B-spline of the order.

They are compiled for one order, degree and dtype (`farfield.electrostatics.compiled`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np

from farfield.electrostatics.compiled import compiled
from farfield.electrostatics.spreading import MULTI_INDICES


@compiled
def _weights(x, order, degree, out, work):  # type: ignore[no-untyped-def]
    """Splines and derivatives at x = u − floor(u): out[d, j] = M⁽ᵈ⁾(x + order − 1 − j), j = 0 … order − 1."""
    # work[m, i] = M_m(x + i), i = 0 … m − 1
    work[1, 0] = 1.0
    for m in range(2, order + 1):
        scale = 1.0 / (m - 1)
        work[m, 0] = scale * x * work[m - 1, 0]
        for i in range(1, m - 1):
            work[m, i] = scale * ((x + i) * work[m - 1, i] + (m - x - i) * work[m - 1, i - 1])
        work[m, m - 1] = scale * (1.0 - x) * work[m - 1, m - 2]
    for j in range(order):
        out[0, j] = work[order, order - 1 - j]
    for d in range(1, degree + 1):
        # d-fold differences of the spline of order − d: M_m′(t) = M_{m−1}(t) − M_{m−1}(t − 1)
        m = order - d
        for i in range(order):
            work[0, i] = work[m, i] if i < m else 0.0
        for repeat in range(d):
            for i in range(m + repeat, 0, -1):
                work[0, i] = work[0, i] - work[0, i - 1] if i < m + repeat else -work[0, i - 1]
        for j in range(order):
            out[d, j] = work[0, order - 1 - j]


@compiled
def _place(u, order, degree, n3, w1, w2, w3, g3, work):  # type: ignore[no-untyped-def]
    """Weights of an atom along the axes, its points along the third, and its first (unwrapped) along the others."""
    f1, f2, f3 = np.floor(u[0]), np.floor(u[1]), np.floor(u[2])
    _weights(u[0] - f1, order, degree, w1, work)
    _weights(u[1] - f2, order, degree, w2, work)
    _weights(u[2] - f3, order, degree, w3, work)
    for k in range(order):
        g3[k] = (int(f3) - order + 1 + k) % n3
    return int(f1) - order + 1, int(f2) - order + 1


@functools.cache
def kernels(order: int, degree: int) -> tuple[Callable[..., None], Callable[..., None]]:
    """Make the kernels for one order of splines and all derivatives up to a degree.

    Returns
    -------
    tuple
        ``spread(u, coefficients, atoms, mesh)`` adds to ``mesh`` what ``atoms`` (indices) put there, ``gather(u, mesh,
        atoms, out)`` sets their rows of ``out``. Arrays: u (atoms, 3) float64, coefficients and out (atoms,
        derivatives), mesh (n₁, n₂, n₃).
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
    def spread(u, coefficients, atoms, mesh):  # type: ignore[no-untyped-def]
        n1, n2, n3 = mesh.shape
        w1 = np.zeros((top, p), mesh.dtype)
        w2 = np.zeros((top, p), mesh.dtype)
        w3 = np.zeros((top, p), mesh.dtype)
        work = np.zeros((p + 1, p + 1), mesh.dtype)
        row = np.zeros(top, mesh.dtype)
        folded = np.zeros((top, top), mesh.dtype)
        g3 = np.zeros(p, np.int64)
        for atom in atoms:
            b1, b2 = _place(u[atom], p, degree, n3, w1, w2, w3, g3, work)
            start = g3[0]
            inside = start + p <= n3
            c = coefficients[atom]
            for i in range(p):
                g1 = (b1 + i) % n1
                # derivatives along the first axis are folded in once a plane, along the second once a row
                for y in range(top):
                    for z in range(top - y):
                        total = w1[0, i] * c[lookup[0, y, z]]
                        for x in range(1, top - y - z):
                            total += w1[x, i] * c[lookup[x, y, z]]
                        folded[y, z] = total
                for j in range(p):
                    g2 = (b2 + j) % n2
                    for z in range(top):
                        total = w2[0, j] * folded[0, z]
                        for y in range(1, top - z):
                            total += w2[y, j] * folded[y, z]
                        row[z] = total
                    line = mesh[g1, g2]
                    if inside:
                        for k in range(p):
                            value = row[0] * w3[0, k]
                            for z in range(1, top):
                                value += row[z] * w3[z, k]
                            line[start + k] += value
                    else:
                        for k in range(p):
                            value = row[0] * w3[0, k]
                            for z in range(1, top):
                                value += row[z] * w3[z, k]
                            line[g3[k]] += value

    @compiled
    def gather(u, mesh, atoms, out):  # type: ignore[no-untyped-def]
        n1, n2, n3 = mesh.shape
        w1 = np.zeros((top, p), mesh.dtype)
        w2 = np.zeros((top, p), mesh.dtype)
        w3 = np.zeros((top, p), mesh.dtype)
        work = np.zeros((p + 1, p + 1), mesh.dtype)
        row = np.zeros(top, mesh.dtype)
        folded = np.zeros((top, top), mesh.dtype)
        g3 = np.zeros(p, np.int64)
        for atom in atoms:
            b1, b2 = _place(u[atom], p, degree, n3, w1, w2, w3, g3, work)
            start = g3[0]
            inside = start + p <= n3
            result = out[atom]
            for i in range(result.shape[0]):
                result[i] = 0.0
            for i in range(p):
                g1 = (b1 + i) % n1
                for y in range(top):
                    for z in range(top - y):
                        folded[y, z] = 0.0
                for j in range(p):
                    line = mesh[g1, (b2 + j) % n2]
                    for z in range(top):
                        total = mesh.dtype.type(0.0)
                        if inside:
                            for k in range(p):
                                total += line[start + k] * w3[z, k]
                        else:
                            for k in range(p):
                                total += line[g3[k]] * w3[z, k]
                        row[z] = total
                    for y in range(top):
                        for z in range(top - y):
                            folded[y, z] += w2[y, j] * row[z]
                for y in range(top):
                    for z in range(top - y):
                        for x in range(top - y - z):
                            result[lookup[x, y, z]] += w1[x, i] * folded[y, z]

    return spread, gather
